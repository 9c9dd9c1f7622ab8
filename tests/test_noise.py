"""Keyed randomness: a number depends on its key and its own generator alone."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from support import seeded

from src.noise import Rows, Seeds, generator, generators, mix, rand, randint, randn

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


def draws_of(own, num):
    """As a model draws: times first, then noise, then numbers from the same generators."""
    return [randint(1, 1000, num, own), randn((num, 2, 3), own), rand((num, 5), own)]


@pytest.mark.parametrize("total", [1, 6, 64, 65, 200, 64 * 64, 64 * 80 + 3])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_rows_of_a_global_batch_are_the_same_however_it_is_cut(total, parts):
    key = (5, "train", 1, 2)
    whole = draws_of(Rows(key, 0, total, total).generators(), total)
    edges = [total * part // parts for part in range(parts + 1)]
    cut = [
        draws_of(Rows(key, first, last, total).generators(), last - first)
        for first, last in itertools.pairwise(edges)
        if last > first
    ]
    for kind, drawn in enumerate(whole):
        assert torch.equal(torch.cat([part[kind] for part in cut]), drawn)


def test_rows_differ_from_each_other_and_between_steps_and_purposes():
    first, again, other = (Rows((0, "train", 0, step), 0, 300, 300) for step in (0, 0, 1))
    noise = randn((300, 40), first.generators())
    assert torch.equal(noise, randn((300, 40), again.generators()))
    assert len(noise.unique(dim=0)) == 300
    for unlike in (other.generators(), first.generators("flip")):
        correlation = torch.corrcoef(
            torch.stack([noise.flatten(), randn((300, 40), unlike).flatten()])
        )
        assert abs(correlation[0, 1]) < 5 / noise.numel() ** 0.5


def test_moments_of_rows():
    def make():
        return Rows((0,), 10, 410, 1000).generators()

    noise = randn((400, 1, 16, 16), make(), dtype=torch.float64)
    bound = 5 / noise.numel() ** 0.5
    assert abs(noise.mean()) < bound
    assert abs(noise.square().mean() - 1) < bound * 2**0.5
    uniform = rand((400, 16, 16), make())
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 / (12 * uniform.numel()) ** 0.5


def test_a_rank_draws_no_more_than_its_own_blocks():
    """However large the global batch: what a rank pays does not grow with the number of ranks."""
    drawn = []

    def counting(out, own):
        drawn.append(len(out))
        return out

    own = Rows((0,), 64 * 50, 64 * 51, 64 * 64).generators()
    own.fill(torch.empty(64, 3), counting)
    assert drawn == [64]


def test_seeds_of_a_purpose_are_keyed_by_image_and_purpose():
    seeds = Seeds([3, 4])
    assert torch.equal(randn((2, 5), seeds.generators()), randn((2, 5), generators([3, 4])))
    assert torch.equal(rand((2, 9), seeds.generators("flip"))[1], rand((9,), generator(4, "flip")))


def test_a_wrong_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="3 generators for 4 images"):
        randn(SHAPE, Rows((0,), 0, 3, 12).generators())
