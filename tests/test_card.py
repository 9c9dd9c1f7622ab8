"""The card as files and at the loggers: for programs, for a paper; earlier ones are kept."""

import json
import math

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from support import CONF
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.evaluation.log_card import log_card
from src.files import write_json
from src.metric.base import Measurement
from src.report.card import Card
from src.report.readings import reading

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def some_card():
    sampler = {"_target_": "src.sampler.ddim.ddim", "_partial_": True, "num_steps": 50, "eta": 1.0}
    card = Card(
        "a | b", {"seed": 0, "sampler": sampler, "step": 7, "overrides": ["seed=0", "metric=fast"]}
    )
    few = Measurement(None, reason="too | few", context={"n_fake": 2})
    kid = Measurement(1.5, 0.25, "standard error", context={"n_fake": 2, "kernel": "cubic"})
    card.add("test", {"fid_x_2": few, "kid_x_2": kid}, features_key="abc", resize="none", seed=0)
    card.add(
        "val", {"loss": Measurement(math.nan), "mse": Measurement(0.5, math.inf, "se")}, split="val"
    )
    card.add(
        "test", {"inception_score_x_2": Measurement(None, reason="no classifier", applies=False)}
    )
    card.notes.append("something was skipped")
    card.pictures["bound"] = PICTURE
    return card


def test_numbers_without_value_are_null_with_a_reason(tmp_path):
    some_card().write(tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert (
        content["test/fid_x_2"]
        is content["val/loss"]
        is content["test/inception_score_x_2"]
        is None
    )
    assert content["details"]["test/fid_x_2"]["reason"] == "too | few"
    assert content["details"]["val/loss"]["reason"] == "not finite (nan)"
    assert (content["val/mse"], content["details"]["val/mse"]["error"]) == (0.5, None)
    expected = {"n_fake": 2, "kernel": "cubic", "features_key": "abc", "resize": "none", "seed": 0}
    assert content["details"]["test/kid_x_2"]["context"] == expected


def test_json_is_what_any_reader_takes(tmp_path):
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "x.json", {"a": value})
    assert not list(tmp_path.iterdir())


def test_the_page_stands_alone(tmp_path):
    some_card().write(tmp_path)
    page = (tmp_path / "evaluation.md").read_text().splitlines()
    for line in (
        "| `test/kid_x_2` | 1.5 ± 0.25 | squared kernel distance, unbiased; 0 is perfect |",
        "| `test/fid_x_2` | – | too \\| few |",
        "- all: features_key abc, resize none, n_fake 2",
        "- `test/kid_x_2`: kernel cubic",
        "- ± is standard error: `test/kid_x_2`",
        "- all: split val",
        "- sampler: ddim num_steps=50 eta=1.0",
        "- overrides: seed=0 metric=fast",
        "- something was skipped",
    ):
        assert line in page, line
    assert not any("inception_score" in line for line in page)


def test_an_earlier_card_is_set_aside(tmp_path):
    for seed in (0, 1, 2):
        card = some_card()
        card.context["seed"] = seed
        if seed == 2:
            card.pictures.clear()
        files = card.write(tmp_path)
        assert all(path.exists() for path in files)
    read = {
        path.name: json.loads(path.read_text())["context"]["seed"]
        for path in tmp_path.glob("*.json")
    }
    assert read == {"evaluation-1.json": 0, "evaluation-2.json": 1, "evaluation.json": 2}
    assert {path.name for path in tmp_path.glob("*.md")} == {
        "evaluation-1.md",
        "evaluation-2.md",
        "evaluation.md",
    }
    pictures = {path.name for path in tmp_path.glob("*.png")}
    # none is beside the card that has none
    assert pictures == {"evaluation-bound-1.png", "evaluation-bound-2.png"}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "evaluation-bound-1.png")), PICTURE)


def test_loggers_are_told_errors_notes_and_pictures(tmp_path):
    logger = {
        "tensorboard": OmegaConf.load(CONF / "logger" / "tensorboard.yaml").tensorboard,
        "csv": {"broken": 1},
    }
    cfg = OmegaConf.create({"logger": logger})
    log_card(cfg, some_card(), tmp_path)
    events = EventAccumulator(str(tmp_path / "evaluation" / "tensorboard")).Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert {
        name: [(e.step, e.value) for e in found] for name, found in scalars.items() if "/" in name
    } == {
        "test/kid_x_2": [(7, 1.5)],
        "test/kid_x_2_error": [(7, 0.25)],
        "val/mse": [(7, 0.5)],
    }
    assert [(image.step, image.width) for image in events.Images("bound")] == [(7, 4)]
    kept = OmegaConf.load(tmp_path / "evaluation" / "tensorboard" / "hparams.yaml")
    assert kept.notes == "something was skipped"
    assert kept.sampler.num_steps == 50


@pytest.mark.parametrize(
    ("name", "context", "text"),
    [
        ("test/rate_large", {}, "L_T"),
        ("test/distortion_small", {}, "L_0"),
        ("test/rate", {}, "KL(q(z | x) || p(z))"),
        ("test/elbo", {"scale": "density on [-1, 1]"}, "density on [-1, 1]"),
        ("val/loss", {"scale": "probability of bits"}, "what training minimises"),
        ("val/loss", {"scale": "probability of bits"}, "probability of bits"),
        ("test/bits_per_dim", {"estimate": "vlb_large"}, "the lowest bound, vlb_large"),
        ("test/nats_static", {"estimate": "iwae_5"}, "the lowest bound, iwae_5"),
        ("test/memorised_classifier_360", {}, "0.05 for an honest model"),
    ],
)
def test_readings(name, context, text):
    assert text in reading(name, {name: 1.0}, context)
    assert "lowest bound" not in reading(
        "test/bits_per_dim_vlb_large", {}, {"estimate": "vlb_large"}
    )
