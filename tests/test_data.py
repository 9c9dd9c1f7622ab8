"""Loaders: a step sees a function of (seed, epoch, step, position).

Ranks, workers and restarts change nothing.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.dataset.base import ImageData, to_float, to_uint8
from src.errors import ConfigError, DataError
from src.noise import Seeds, randn
from src.training.data import ImageDataModule
from src.training.order import Batches, EvalPlan, ResumableLoader, TrainPlan


def some_images(num=40):
    images = torch.arange(num, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 3)
    images[..., -1] = 255
    return ImageData(images, torch.arange(num))


def module(batch=12, accumulate=1, world=1, rank=0, **settings):
    data = ImageDataModule(lambda split: some_images(), (1, 2, 3), batch, seed=5, **settings)
    data.trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate,
        world_size=world,
        global_rank=rank,
        limit_train_batches=1.0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


def one_epoch(**how):
    """Of each batch labels, noise and images."""
    batches = module(**how).train_dataloader()
    return [(b.label.tolist(), randn((len(b.x), 3), b.noise.generators()), b.x) for b in batches]


def test_pixels_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert (to_float(every).min(), to_float(every).max()) == (-1, 1)
    assert to_uint8(torch.tensor([0.0039, 0.0040, -2.0, 2.0])).tolist() == [128, 128, 0, 255]


@pytest.mark.parametrize(("accumulate", "world"), [(2, 1), (1, 2), (3, 2), (1, 4)])
def test_any_split_of_a_global_batch_is_the_same_batch(accumulate, world):
    whole = one_epoch()
    parts = [one_epoch(accumulate=accumulate, world=world, rank=rank) for rank in range(world)]
    for step, (labels, noise, x) in enumerate(whole):
        cut = [parts[r][step * accumulate + m] for m in range(accumulate) for r in range(world)]
        assert sum((c[0] for c in cut), []) == labels
        assert torch.equal(torch.cat([c[1] for c in cut]), noise)
        assert torch.equal(torch.cat([c[2] for c in cut]), x)


def test_an_epoch_has_no_image_twice_and_the_next_another_order():
    loader = module(batch=10).train_dataloader()
    epochs = [sum((b.label.tolist() for b in loader), []) for _ in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(40))] * 2
    assert epochs[0] != epochs[1]
    again = module(batch=10).train_dataloader()
    assert sum((b.label.tolist() for b in again), []) == epochs[0]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_loader_goes_on_at_the_next_batch(stop, workers):
    def batches(loader, count):
        seen = []
        while len(seen) < count:
            for batch in loader:
                seen.append((batch.label.tolist(), batch.noise))
                if len(seen) == count:
                    break
        return seen

    whole = batches(module(batch=10, num_workers=workers, flip=True).train_dataloader(), 10)
    first = module(batch=10, num_workers=workers).train_dataloader()
    begun = batches(first, stop)
    second = module(batch=10, num_workers=workers).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert begun + batches(second, 10 - stop) == whole


def test_an_epoch_that_was_left_early_is_followed_by_the_next():
    loader = module(batch=10).train_dataloader()
    next(iter(loader))
    labels = next(iter(loader)).label.tolist()
    fresh = module(batch=10).train_dataloader()
    list(fresh)
    assert next(iter(fresh)).label.tolist() == labels


def test_evaluation_keeps_order_and_noise_for_any_number_of_ranks():
    def seen(world):
        plans = [
            EvalPlan(40, seed=1, batch_size=7, rank=rank, world_size=world) for rank in range(world)
        ]
        return sorted(
            (i, s)
            for plan in plans
            for indices, noise in plan
            for i, s in zip(indices.tolist(), noise.seeds, strict=True)
        )

    assert [i for i, _ in seen(1)] == list(range(40))
    assert seen(1) == seen(3)
    assert len(EvalPlan(40, 1, 7, 0, 1)) == 6


def key(num, first=0, images=200):
    return np.arange(num) % images, Seeds(range(first, first + num))


def test_flips_are_per_image_and_about_half():
    batches = Batches(some_images(200), "train", flip=True, binarize=None)
    flipped = batches[key(400)].x[:, 0, 0, 0] == 1  # the bright column is on the left
    assert 140 < flipped.sum() < 260
    assert torch.equal(flipped[:10], batches[key(10)].x[:, 0, 0, 0] == 1)


def test_binarised_images_are_bits_with_the_pixel_as_probability():
    data = ImageData(torch.full((2000, 1, 2, 2), 64, dtype=torch.uint8))
    everything, other = (key(2000, first, images=2000) for first in (0, 2000))
    dynamic, static = (Batches(data, "train", False, how) for how in ("dynamic", "static"))
    assert set(dynamic[everything].x.unique().tolist()) == {-1.0, 1.0}
    assert abs(float((dynamic[everything].x > 0).float().mean()) - 64 / 255) < 0.02
    assert not torch.equal(dynamic[everything].x, dynamic[other].x)
    assert torch.equal(static[everything].x, static[other].x)


def test_static_bits_are_those_of_the_data_and_dynamic_ones_of_the_seed():
    def bits(how, split="test", seed=0):
        data = ImageDataModule(lambda split: some_images(), (1, 2, 3), 4, seed=seed, binarize=how)
        return data.batch(split, range(40)).x

    assert torch.equal(bits("static"), bits("static", seed=1))
    # the same images with other uniforms
    assert not torch.equal(bits("static"), bits("static", split="train"))
    assert torch.equal(bits("dynamic"), bits("dynamic"))
    assert not torch.equal(bits("dynamic"), bits("dynamic", seed=1))


@pytest.mark.parametrize(("accumulate", "world"), [(1, 5), (5, 1), (2, 7), (1, 13), (30, 2)])
def test_evaluation_loaders_serve_any_number_of_ranks(accumulate, world):
    """12 images do not divide by 5; of 13 ranks each still gets batches."""
    seen = []
    for rank in range(world):
        data = module(accumulate=accumulate, world=world, rank=rank)
        for loader in (data.val_dataloader(), data.test_dataloader()):
            batches = list(loader)
            assert max(len(batch.x) for batch in batches) == max(1, 12 // accumulate // world)
        seen += [index for batch in batches for index in batch.label.tolist()]
    assert sorted(seen) == list(range(40))


def test_creating_an_iterator_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(
        ResumableLoader(
            Batches(some_images(), "train", False, None), TrainPlan(40, 0, 10, (1, 1, 0)), {}, 4
        )
    )
    assert torch.equal(torch.rand(1), expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="must be at most the 40 images"):
        module(batch=41)
    uneven = module(accumulate=5)
    with pytest.raises(ConfigError, match="divisible by 5"):
        uneven.shares(uneven.trainer)
    with pytest.raises(DataError, match="image_shape"):
        ImageDataModule(lambda split: some_images(), (1, 3, 3), 4, seed=0)
    with pytest.raises(ConfigError, match="num_workers=-1"):
        module(num_workers=-1)
