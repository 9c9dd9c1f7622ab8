"""References of a recorded configuration: kept, followed within limits, put back into old runs."""

from __future__ import annotations

import time

import pytest
from omegaconf import OmegaConf

from src.config.references import (
    is_reference,
    recorded,
    references_of_conf,
    resolved,
    targets_of_conf,
    with_references,
    without_references,
)
from src.rundir.provenance import plain

MODELS = (["model=ddpm"], ["model=vae"], ["model=ae"], ["model=beta_vae"])
MODELS += (["network=mlp", "sampler=ddpm"], ["model=vae", "likelihood=logistic"])
MODELS += (["dataset=image_folder", "dataset.root=x"], ["dataset=shapes"])


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("${sampler}", True),
        ("${..encoder.norm}", True),
        ("${dataset.image_shape.0}", True),
        ("${oc.env:HOME}", False),
        ("x${sampler}", False),
        ("${sampler} ", False),
        ("${a${b}}", False),
        ("${}", False),
        (7, False),
    ],
)
def test_a_reference_is_that_and_nothing_else(value: object, is_one: bool) -> None:
    assert is_reference(value) is is_one


@pytest.mark.parametrize("words", MODELS, ids=" ".join)
def test_what_is_recorded_comes_to_what_was_composed(composed, words) -> None:
    """OmegaConf is the oracle."""
    cfg = composed(*words)
    full = OmegaConf.to_container(cfg, resolve=True)
    kept = plain(cfg)
    assert kept["model"] != full["model"]
    assert without_references(kept) == full | {"provenance": kept["provenance"]}


@pytest.mark.parametrize("words", MODELS, ids=" ".join)
def test_runs_of_before_get_their_references_back(composed, words) -> None:
    cfg = composed(*words)
    full = OmegaConf.to_container(cfg, resolve=True)
    kept = recorded(OmegaConf.to_container(cfg, resolve=False), full)
    for group in ("model", "network", "dataset", "callback", "sampler"):
        assert with_references(full).get(group) == kept.get(group)
        assert with_references(kept).get(group) == kept.get(group)


def test_a_place_on_another_machine_is_referred_to(composed) -> None:
    full = OmegaConf.to_container(composed("model=vae"), resolve=True)
    full["callback"]["checkpoint"]["dirpath"] = "/theirs/checkpoints"
    full["features"]["cache_dir"] = "/theirs"
    again = with_references(full)
    assert again["callback"]["checkpoint"]["dirpath"] == "${run_dir}"
    assert again["features"]["cache_dir"] == "${cache_dir}"


def test_what_was_changed_by_hand_stays(composed) -> None:
    full = OmegaConf.to_container(composed("model=vae"), resolve=True)
    full["network"]["decoder"]["norm"] = "batch"
    again = with_references(full)
    assert again["network"]["decoder"]["norm"] == "batch"
    assert again["network"]["decoder"]["channels"] == "${..encoder.channels}"


REFUSED = {
    "nowhere": ({"a": "${b}"}, "not there"),
    "below a value": ({"a": "${b.c}", "b": 1}, "not there"),
    "beyond a list": ({"a": "${b.3}", "b": [1]}, "not there"),
    "above the top": ({"a": "${...b.c}"}, "not there"),
    "itself": ({"a": "${a}"}, "circle"),
    "two": ({"a": "${b}", "b": "${a}"}, "circle"),
    "through parts": ({"a": "${b.x}", "b": "${a.y}"}, "circle"),
    "inside": ({"a": {"b": "${a}"}}, "circle|levels"),
    "chain": ({f"a{i}": f"${{a{i + 1}}}" for i in range(200)} | {"a200": 1}, "levels"),
    "doubling": (
        {"a0": [0]} | {f"a{i + 1}": [f"${{a{i}}}", f"${{a{i}}}"] for i in range(30)},
        "values",
    ),
    "wide": ({"a": [0] * 1000, "b": ["${a}"] * 1000}, "values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_references_without_end_are_refused_at_once(name: str) -> None:
    config, message = REFUSED[name]
    begin = time.monotonic()
    with pytest.raises(ValueError, match=message):
        resolved(config)
    assert time.monotonic() - begin < 2


def test_a_reference_may_lead_through_another() -> None:
    config = {"a": "${b}", "b": {"c": ["x", "${d}"]}, "d": {"e": "${..f}", "g": "${.e}"}, "f": 5}
    config["h"] = "${a.c.1.e}"
    found = resolved(config)
    assert found["h"] == 5
    assert found["a"] == {"c": ["x", {"e": 5, "g": 5}]}


def test_conf_is_read_by_its_own_reader() -> None:
    assert (("model", "network"), "src.model.diffusion.Diffusion", "${network}") in (
        references_of_conf()
    )
    assert "torch.optim.AdamW" in targets_of_conf()
