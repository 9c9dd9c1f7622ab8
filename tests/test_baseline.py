"""No number has changed since benchmarks/baseline.json was recorded."""

import subprocess
import sys
import warnings

import pytest
from conftest import ROOT

from benchmarks.baseline import CASES, compare, foreign, measure, recording, rule_of

RECORDED = {
    "card/test/fid/value": 2.0,
    "card/test/fid/error": 0.5,
    "card/test/fid/n_real": 100,
    "hash/model": "ab",
    "metrics/test/loss": 3.0,
    "metrics/test/nothing": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_recorded(case, tmp_path):
    recorded = recording()
    reasons = foreign(recorded["machine"])
    print(rule_of(reasons))
    if reasons:
        warnings.warn(rule_of(reasons), stacklevel=1)  # in the summary of every run
    result = compare(recorded["cases"][case], measure([case], tmp_path)[case], bits=not reasons)
    advice = "if they were meant to change: python benchmarks/baseline.py record"
    assert not result.failures, "\n".join([rule_of(reasons), *result.failures, advice])


def test_every_case_is_recorded():
    recorded = recording()["cases"]
    assert recorded.keys() == CASES.keys()
    for case, facts in recorded.items():
        hashes = {name for name in facts if name.startswith("hash/")}
        expected = {"hash/model", "hash/optimiser"}
        expected |= set() if case.startswith("ae-") else {"hash/samples"}
        expected |= {"hash/average"} if case.startswith("ddpm-") else set()
        assert hashes == expected
        assert {"card/test/loss/value", "metrics/step"} <= facts.keys()


@pytest.mark.parametrize(
    ("name", "value", "within_bits", "within_tolerance"),
    [
        ("metrics/test/loss", 3.0, True, True),
        ("metrics/test/loss", 3.0000000000000004, False, True),
        ("metrics/test/loss", 3.1, False, False),
        ("metrics/test/loss", 3, False, False),
        ("metrics/test/nothing", 0.0, False, False),
        ("hash/model", "cd", False, True),
        ("card/test/fid/value", 2.4, False, True),
        ("card/test/fid/value", 2.6, False, False),
        ("card/test/fid/error", 0.55, False, True),
        ("card/test/fid/error", 0.9, False, False),
        ("card/test/fid/n_real", 101, False, False),
        ("card/test/new", 1.0, True, True),
    ],
)
def test_what_counts_as_a_difference(name, value, within_bits, within_tolerance):
    found = RECORDED | {name: value}
    assert (compare(RECORDED, found, bits=True).failures == []) is within_bits
    assert (compare(RECORDED, found, bits=False).failures == []) is within_tolerance


@pytest.mark.parametrize("bits", [True, False])
@pytest.mark.parametrize("name", RECORDED)
def test_what_is_missing_is_a_failure(name, bits):
    found = {key: value for key, value in RECORDED.items() if key != name} | {"metrics/new": 1}
    result = compare(RECORDED, found, bits)
    assert len(result.failures) == 1
    assert result.failures[0].startswith(f"{name}: ")
    assert "nothing was found" in result.failures[0]
    assert result.news == ["metrics/new"]


@pytest.mark.parametrize("words", [["check", "vae-nothing"], ["record", "vae-digits"], []])
def test_wrong_words_are_refused(words):
    command = [sys.executable, ROOT / "benchmarks" / "baseline.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
