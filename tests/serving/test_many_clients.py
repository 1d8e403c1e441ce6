"""Clients of all kinds at once; SCA_LOAD_SECONDS=180 SCA_LOAD_SHARE=1 is the whole measurement."""

import os

import pytest


pytest.importorskip("fastapi", reason="the extra serve is not installed")

from benchmarks.mixed_load import faults, measure


@pytest.mark.slow
def test_clients_of_all_kinds_leave_the_honest_ones_their_answers_and_their_time():
    found = measure(float(os.environ.get("SCA_LOAD_SECONDS", "20")), float(os.environ.get("SCA_LOAD_SHARE", "0.2")))
    assert not faults(found), found
    assert all(found[f"requests, {kind}"] for kind in ("slow", "silent", "large", "leaving", "foreign"))
