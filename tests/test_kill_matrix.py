"""The kill matrix with few tries; `make kills` makes as many as one likes."""

import sys
from pathlib import Path

import pytest

from tests import kill_matrix


@pytest.mark.slow
@pytest.mark.parametrize("name", kill_matrix.commands("", "", ""))
def test_killed_or_without_room_a_command_ends_with_the_same(tmp_path, monkeypatch, name):
    for folder in ("hub", "training"):
        monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent / folder)])
    (line,) = kill_matrix.table(tmp_path, times=1, full=2, names=[name])
    assert "all ended alike" in line
