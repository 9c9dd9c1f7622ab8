"""What the tests of evaluations share: runs trained once per file, cards, changed checkpoints."""

import json

import pytest
import torch
from PIL import Image

from src.rundir.checkpoint import read_checkpoint

FAST = ["trainer=cpu", "logger=[]", "num_samples=300", "score.timesteps=5", "score.num_images=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs by name, trained once for a file."""
    runs = {}

    def get(cli, small, name, *words):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("runs") / name
            done = cli(
                "train", *small, "callback.generation=null", *words, f"hydra.run.dir={runs[name]}"
            )
            assert done.code == 0, done.err
        return runs[name]

    return get


def evaluated(cli, run, *words, output=None):
    """Outcome and content of evaluation.json, which must be JSON that any reader takes."""
    output = output or run
    done = cli("evaluate", f"ckpt_path={run}", *FAST, f"output={output}", *words)
    assert done.code == 0, done.err
    folder = output if output.is_dir() else output.parent
    return done, json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)


def numbers(card):
    return {name: value for name, value in card.items() if "/" in name}


def doctored(run, target, change):
    """The run's checkpoint as ``target``, after ``change(checkpoint)``."""
    checkpoint = read_checkpoint(run)
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


def pictures(folder, **splits):
    """A folder of grey 8 x 8 images without labels: split -> how many."""
    for split, num in splits.items():
        (folder / split).mkdir(parents=True)
        for i in range(num):
            pixels = torch.randint(
                0, 256, (8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)
            )
            Image.fromarray(pixels.numpy()).save(folder / split / f"{i}.png")
    return [
        "dataset=image_folder",
        f"dataset.root={folder}",
        "dataset.image_size=8",
        "dataset.channels=1",
    ]
