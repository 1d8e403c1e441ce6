"""The table of the field's files says of each what it should."""

import pytest

from experiments.exporters import outcome
from sca_hf.data.loading import load_regions


# How many regions the field's own files hold when they are read rightly.
FIELD = {
    "azure": 3, "blankline": 2, "cvat_brush": 101, "cvat_yolo11": 2, "exif6_stored": 9, "fiftyone": 1,
    "ls_coco_local": 21, "ls_enc": 14, "nobbox": 21, "norway": 4, "norway2": 5, "pose17": 1, "pose4": 1, "rot": 21,
    "roboflow3x": 297, "torn": 131, "via": 21, "voc0": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", FIELD)
def test_the_fields_own_files_are_read(name, shared):
    (first, *others) = outcome(shared(f"fixtures/exporters/{name}"))[1]
    assert f" {FIELD[name]} regions" in first
    refused = [line for line in others if line.startswith(("refused", "bad"))]
    assert bool(refused) == (name == "torn")
    told = {"cvat_brush": "WARNING", "azure": "note", "exif6_stored": "note", "voc0": "note"}.get(name)
    assert told is None or any(line.startswith(told) for line in others)


def test_a_set_that_is_all_crowds_is_refused(shared):
    lines = outcome(shared("fixtures/exporters/cvat_allbrush"))[1]
    assert any(line.startswith("refused") and "crowd=keep" in line for line in lines)
    rows = load_regions("cvat", root=str(shared("fixtures/exporters/cvat_allbrush")))
    assert sum(map(len, rows["regions"])) == 133
