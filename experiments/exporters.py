"""What comes of each small file of the field's annotation tools: one row for each folder.

    python -m experiments.exporters ../shared/fixtures/exporters

The folders show what people's files broke once. A row says how the folder is opened and what comes of it: how much is
read, what was decided and warned of, or the error.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from sca_hf.data.inspection import check_data
from sca_hf.data.loading import load_spec


# Folders that are not a COCO file beside its pictures, or show something else than their bare reading.
SPECS: dict[str, dict[str, Any]] = {
    "blankline": {"format": "yolo", "root": "."},
    "cvat_allbrush": {"format": "coco", "annotations": "annotations/instances_default.json"},
    "cvat_brush": {"format": "coco", "annotations": "annotations/instances_default.json"},
    "cvat_yolo11": {"format": "cvat", "root": "."},
    "fiftyone": {"format": "fiftyone", "root": ".", "split": "train"},
    "ls_enc": {"format": "yolo", "root": "."},
    "norway": {"format": "yolo", "root": "."},
    "norway2": {"format": "yolo", "root": "."},
    "pose17": {"format": "yolo", "root": "."},
    "pose4": {"format": "yolo", "root": "."},
    "roboflow3x": {"format": "roboflow", "root": "."},
    "via": {"format": "via", "root": "result.json"},
    "voc0": {"format": "voc", "root": "."},
}


def outcome(folder: Path) -> tuple[str, list[str]]:
    """Returns how a folder is opened, and what comes of it."""
    given = SPECS.get(folder.name) or {"format": "coco", "annotations": next(folder.glob("*.json")).name}
    paths = {key: str(folder / value) for key, value in given.items() if key in ("root", "annotations")}
    options = ",".join(f"{key}={value}" for key, value in given.items() if key != "format")
    spec = {**given, **paths}
    try:
        report = check_data(spec, images=True)
        lines = [f"{report.read.records} images, {report.read.regions} regions, {report.masks} masks"]
        lines += [f"{name}: {count}" for name, count in report.categories.most_common()]
        lines += [f"left out: {count} {what}" for what, count in report.read.left_out.items()]
        lines += [f"WARNING: {text}" for text in report.read.warnings()] + [
            f"note: {text}" for text in report.read.notes
        ]
        lines += [f"bad: {text}" for text in report.read.messages[:2]]
        report.read.require_records()
    except ValueError as error:
        lines = [f"refused: {error}"]
    else:
        try:
            load_spec({**spec, "on_error": "raise"})
        except ValueError:
            lines.append("refused without on_error=skip")
    return f"{given['format']}:{options}", [line.replace(f"{folder}/", "").replace(str(folder), ".") for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of such folders")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the reports say the same
    print("| folder | opened as | outcome |\n| --- | --- | --- |")
    for folder in sorted(path for path in options.folder.iterdir() if path.is_dir()):
        spec, lines = outcome(folder)
        print(f"| `{folder.name}` | `{spec}` | {'; '.join(lines)} |")


if __name__ == "__main__":
    main()
