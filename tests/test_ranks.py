"""Work that is shared by ranks: real processes that talk to each other, of which one fails."""

import multiprocessing
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from support import PATIENCE
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance

from src.dataset.base import ImageData
from src.errors import ConfigError, DataError, StorageError
from src.evaluation.generation import GenerationEvaluator
from src.evaluation.reconstruction import Reconstruction
from src.features.pixels import Pixels
from src.metric.base import Reference, Samples
from src.metric.fid import Fid
from src.metric.generation import GenerationMetrics
from src.metric.torchmetric import TorchMetric
from src.noise import mix, randn
from src.parallel.ranks import failing_together, share_work
from src.parallel.sampling import Sampler

WORLD = 2


def _rank(rank, place, work, answers):
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=WORLD)
    try:
        answers.put((rank, "done", work(rank)))
    except Exception as error:
        answers.put((rank, type(error), str(error)))


@pytest.fixture
def on_ranks(tmp_path):
    """Call ``work(rank)`` in forked processes; rank -> ("done", result) or (class, message)."""

    def call(work):
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        arguments = [(rank, tmp_path / "meeting", work, answers) for rank in range(WORLD)]
        ranks = [context.Process(target=_rank, args=own) for own in arguments]
        for rank in ranks:
            rank.start()
        try:
            found = dict(
                (rank, (kind, told))
                for rank, kind, told in (answers.get(timeout=PATIENCE) for _ in ranks)
            )
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        return found

    return call


@pytest.mark.parametrize("kind", [StorageError, DataError, ConfigError, ValueError])
def test_an_error_of_one_rank_is_the_error_of_all(on_ranks, kind):
    def work(rank):
        def of_block(block):
            if block.start == 3:
                raise kind("disk full: /x")
            return block.start

        return share_work(6, 1, of_block)

    assert on_ranks(work) == dict.fromkeys(range(WORLD), (kind, "disk full: /x"))


def test_a_defect_of_one_rank_stops_all(on_ranks):
    def work(rank):
        with failing_together():
            if rank == 1:
                raise TypeError("a mistake\nand more")

    assert on_ranks(work) == {0: (RuntimeError, "a mistake"), 1: (TypeError, "a mistake\nand more")}


def test_of_several_errors_all_raise_the_same(on_ranks):
    def work(rank):
        with failing_together():
            raise [DataError, StorageError][rank](f"rank {rank}")

    assert on_ranks(work) == dict.fromkeys(range(WORLD), (DataError, "rank 0"))


def test_results_are_those_of_all_ranks_in_order(on_ranks):
    assert on_ranks(lambda rank: share_work(7, 2, list)) == dict.fromkeys(
        range(WORLD), ("done", [[0, 1], [2, 3], [4, 5], [6]])
    )


class Failing:
    """Samples noise; the image of one index cannot be drawn."""

    def sample(self, num, label=None, generator=None):
        if generator[0].initial_seed() == self.bad:
            raise DataError("sample 8: no such thing")
        return randn((num, 1, 2, 2), generator).clamp(-1, 1)


def test_samples_that_one_rank_cannot_draw_end_the_evaluation_of_all(on_ranks):
    model, train = Failing(), ImageData(torch.randint(0, 256, (30, 1, 2, 2), dtype=torch.uint8))
    judge = GenerationEvaluator(Pixels((1, 2, 2)), GenerationMetrics({"fid": Fid()}))

    def work(rank):
        return judge.measure(model, train, 12, Sampler(seed=0, batch_size=4))["fid"].value

    model.bad = mix(0, "sample", 4)  # of the second block, which is rank 1's
    assert on_ranks(work) == dict.fromkeys(range(WORLD), (DataError, "sample 8: no such thing"))


class Doubling:
    """Reconstructs with twice the contrast."""

    def reconstruct(self, x):
        return (2 * x).clamp(-1, 1)


class Held:
    """Test images in [-1, 1]."""

    binarize = None

    def __init__(self, num):
        self.splits = {"test": ImageData(torch.arange(num * 16).view(num, 1, 4, 4).byte())}

    def batch(self, split, block):
        return SimpleNamespace(x=self.splits[split].images[list(block)] / 127.5 - 1)


def test_reconstructions_measured_on_two_ranks_are_those_of_one(on_ranks):
    metrics = {
        "psnr": PeakSignalNoiseRatio(1.0, reduction="none", dim=(1, 2, 3)),
        "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
    }

    def work(rank):
        found = Reconstruction(metrics, 3).measure(Doubling(), Held(10), torch.device("cpu"))
        return {name: (number.value, number.error) for name, number in found.items()}

    assert on_ranks(work) == dict.fromkeys(range(WORLD), ("done", work(0)))


def test_sets_measured_by_torchmetrics_are_not_counted_once_per_rank(on_ranks):
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    samples = Samples(Reference(features), features[:9] + 1)
    measure = TorchMetric(FrechetInceptionDistance, "fid")

    def work(rank):
        return measure(samples)["fid"].value

    assert on_ranks(work) == dict.fromkeys(range(WORLD), ("done", work(0)))


def test_one_process_raises_its_own_error():
    error = KeyError("x")
    with pytest.raises(KeyError) as caught, failing_together():
        raise error
    assert caught.value is error
