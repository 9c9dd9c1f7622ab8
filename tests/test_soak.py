"""Twelve random faults over a run (``make soak``: two hundred)."""

import pytest
from soak import soak


@pytest.mark.slow
def test_a_run_under_random_faults_ends_with_the_bits_of_one_in_peace(tmp_path):
    seen = soak(tmp_path, num_faults=12, steps=200, seed=1)
    assert seen.struck >= 10
    assert seen.corrupted >= 1
    assert (seen.differing, seen.same_history, seen.leftovers) == ([], True, [])
