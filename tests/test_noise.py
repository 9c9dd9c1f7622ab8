"""Keyed randomness: a number depends on its key and its own generator alone."""

import os
import subprocess
import sys

import pytest
import torch
from support import seeded

from src.noise import generator, generators, mix, randint, randn

SHAPE = (4, 3, 5, 5)


def test_mix_is_stable_across_processes():
    code = "from src.noise import mix; print(mix(1, 'train', 3))"
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(printed.stdout) == mix(1, "train", 3) == 8686199043350045037


def test_mix_tells_keys_apart_and_spreads_over_64_bits():
    keys = [
        (),
        (1,),
        (1.0,),
        ("1",),
        (1, 2),
        (12,),
        (2, 1),
        ("1", 2),
        ("a", "b"),
        ("ab",),
        ("a,b",),
    ]
    keys += [(seed, "train", step) for seed in range(30) for step in range(100)]
    seeds = [mix(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**64 for seed in seeds)
    ones = torch.tensor([[seed >> bit & 1 for bit in range(64)] for seed in seeds]).double().mean(0)
    assert ((ones - 0.5).abs() < 5 * 0.5 / len(seeds) ** 0.5).all()


def test_generator_of_a_key_repeats_and_differs_between_keys():
    assert torch.equal(randn(SHAPE, generator(1, "a")), randn(SHAPE, generator(1, "a")))
    assert not torch.equal(randn(SHAPE, generator(1, "a")), randn(SHAPE, generator(2, "a")))


@pytest.mark.parametrize(
    "draw",
    [lambda own: randn((len(own), *SHAPE[1:]), own), lambda own: randint(0, 10**9, len(own), own)],
    ids=["randn", "randint"],
)
def test_image_depends_on_its_own_generator_alone(draw):
    batch = draw(generators([10, 11, 12, 13]))
    for image, seed in zip(batch, [10, 11, 12, 13], strict=True):
        assert torch.equal(image, draw(generators([seed]))[0])
    assert torch.equal(batch.flip(0), draw(generators([13, 12, 11, 10])))
    assert len(batch.flatten(1).unique(dim=0) if batch.ndim > 1 else batch.unique()) == 4


@pytest.mark.parametrize("make", [lambda: None, lambda: seeded(3), lambda: generators(range(4))])
def test_cast_does_not_change_the_numbers(make):
    draws = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(3)
        draws.append(randn(SHAPE, make(), device="cpu", dtype=dtype))
        assert (draws[-1].dtype, draws[-1].shape, draws[-1].device.type) == (dtype, SHAPE, "cpu")
    assert torch.equal(draws[0].double(), draws[1])
    assert torch.equal(draws[0].bfloat16(), draws[2])


@pytest.mark.parametrize("make", [lambda: seeded(0), lambda: generators(range(400))])
def test_moments(make):
    noise = randn((400, 1, 16, 16), make(), dtype=torch.float64)
    bound = 5 / noise.numel() ** 0.5
    for power, moment, deviation in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(noise.pow(power).mean() - moment) < bound * deviation


@pytest.mark.parametrize("make", [lambda: None, lambda: seeded(0), lambda: generators(range(3000))])
def test_randint_is_uniform_below_high(make):
    torch.manual_seed(0)
    draws = randint(2, 7, 3000, make())
    assert draws.dtype == torch.long
    counts = draws.bincount(minlength=7)
    assert counts.tolist()[:2] == [0, 0]
    assert len(counts) == 7
    assert ((counts[2:] - 600).abs() < 5 * (3000 * 0.2 * 0.8) ** 0.5).all()


@pytest.mark.parametrize("draw", [lambda own: randn(SHAPE, own), lambda own: randint(0, 2, 4, own)])
@pytest.mark.parametrize("count", [0, 3, 5])
def test_wrong_number_of_generators_is_refused(draw, count):
    with pytest.raises(ValueError, match=f"{count} generators for 4 images"):
        draw(generators(range(count)))
