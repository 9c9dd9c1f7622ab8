"""Samples do not depend on how the work is cut, and a long sampling can be resumed."""

import signal

import numpy as np
import pytest
import torch
from torch import nn

from src.errors import ConfigError, Interrupted
from src.noise import randn
from src.parallel import ranks
from src.parallel.sampling import Sampler, Shards
from src.report import progress


class Convolved(nn.Module):
    """Samples noise through a convolution; counts how many images it has drawn."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1)
        )
        self.drawn = 0

    def sample(self, num, label=None, generator=None):
        self.drawn += num
        return self.body(randn((num, 1, 8, 8), generator)).clamp(-1, 1)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Convolved()


def images(parts):
    return torch.cat([parts[start] for start in sorted(parts)])


def drawn_by(world, model, num, batch_size, monkeypatch):
    parts = {}
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank_and_world", lambda rank=rank: (rank, world))
        mine = dict(Sampler(seed=3, batch_size=batch_size).blocks(model, num))
        assert not parts.keys() & mine.keys()
        parts |= mine
    return images(parts)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_any_number_of_ranks_draws_the_same_images(model, monkeypatch, world):
    alone = drawn_by(1, model, 50, 8, monkeypatch)
    assert len(alone) == 50
    assert torch.equal(alone, drawn_by(world, model, 50, 8, monkeypatch))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_another_batch_size_moves_few_pixels_by_one_level(model, monkeypatch, batch_size):
    reference = drawn_by(1, model, 50, 16, monkeypatch).int()
    difference = (reference - drawn_by(1, model, 50, batch_size, monkeypatch).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def test_repeats_have_noise_of_their_own(model):
    sampler = Sampler(seed=0, batch_size=8)
    first, second = (
        images(dict(sampler.blocks(model, 10 * (r + 1), begin=10 * r))) for r in range(2)
    )
    assert len(first) == len(second) == 10
    together = images(dict(sampler.blocks(model, 20)))
    assert (together.int() - torch.cat([first, second]).int()).abs().max() <= 1
    assert not torch.equal(first, second)


def test_what_was_drawn_is_not_drawn_again(model, tmp_path):
    shards = Shards(tmp_path / "shards")
    begun = Sampler(seed=0, batch_size=8, shards=shards).blocks(model, 40)
    first = dict(next(begun) for _ in range(3))  # stopped after three blocks
    assert model.drawn == 24
    (tmp_path / "shards" / "000000008.npz").write_bytes(b"half a file")
    sampler = Sampler(seed=0, batch_size=8, shards=shards)
    parts = dict(sampler.blocks(model, 40))
    assert model.drawn == 24 + 16 + 8
    assert sampler.drawn == 24
    assert sampler.seconds_per_image > 0
    assert all(torch.equal(parts[start], kept) for start, kept in first.items())
    shards.remove()
    assert not (tmp_path / "shards").exists()
    assert torch.equal(images(parts), images(dict(Sampler(seed=0, batch_size=8).blocks(model, 40))))


def test_progress_is_told_in_a_log_file(model, monkeypatch, caplog):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    with caplog.at_level("INFO", "src"):
        list(Sampler(seed=0, batch_size=8, progress=progress.shown("sampling")).blocks(model, 20))
    assert [r.message.split("  ")[0] for r in caplog.records] == ["sampling 8/20", "sampling 16/20"]
    assert all("images/s  ETA 0:00" in record.message for record in caplog.records)


@pytest.mark.slow
def test_an_interrupted_sampling_goes_on_in_its_directory(cli, small, tmp_path, monkeypatch):
    assert cli("train", *small, "model=vae", "hydra.run.dir=run").code == 0
    words = ["ckpt_path=run", "num_samples=12", "batch_size=4", "trainer=cpu"]
    assert cli("sample", *words, "output=whole").code == 0
    save, calls = Shards.save, []

    def interrupted(shards, block, kept):
        save(shards, block, kept)
        calls.append(block.start)
        if len(calls) == 2:
            raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(Shards, "save", interrupted)
    assert cli("sample", *words, "output=part").code == 130
    assert not (tmp_path / "part" / "samples.npz").exists()
    other = cli("sample", *words, "output=part", "seed=1")
    assert other.code == ConfigError.exit_code
    assert "already holds files" in other.err
    done = cli("sample", *words, "output=part")
    assert done.code == 0, done.err
    assert "8 of 12 samples were drawn before" in done.out
    assert calls == [0, 4, 8]
    whole, part = (
        np.load(tmp_path / name / "samples.npz")["samples"] for name in ("whole", "part")
    )
    assert np.array_equal(whole, part)
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == [
        "grid.png",
        "samples.npz",
    ]
