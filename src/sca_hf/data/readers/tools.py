"""Reads what annotation tools export, by the name of the tool; the files tell which reader is meant, and how.

The readers are those of the formats; here is where the tools put things, and what they mean by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .coco import read_coco, unnamed_images
from .common import Clip, Crowd, Record, read_annotations
from .voc import read_voc
from .yolo import read_yolo


def read_cvat(
    root: str | Path,
    split: str | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: Crowd = "keep",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields the records of CVAT's exports "COCO 1.0", "Pascal VOC 1.1", "YOLO 1.1" and "Ultralytics YOLO".

    Args:
        root: the unpacked export.
        split: CVAT's subset, where there are several.
        task, names, clip: as for COCO.
        crowd: CVAT marks each mask that was drawn by brush as a crowd, and it is one object nevertheless.
    """
    root = Path(root)
    files = sorted(root.glob("annotations/instances_*.json"))
    if files:
        yield from read_coco(_chosen(files, split), None, task, names, crowd, clip=clip)
    elif (root / "Annotations").is_dir():
        yield from read_voc(root, split=split, task=task, names=names, clip=clip)
    elif (root / "annotations.xml").is_file():
        raise ValueError(f'{root / "annotations.xml"} is "CVAT for images"; export the task as "COCO 1.0" instead.')
    else:
        yield from read_yolo(root, split, task=task, names=names, clip=clip)


def read_roboflow(
    root: str | Path,
    split: str = "train",
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: Crowd = "skip",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields the records of Roboflow's exports "COCO", "COCO Segmentation", "Pascal VOC" and all of "YOLO".

    Args:
        root: the unpacked export, with a folder of each split.
        split: train, valid or test.
        task, names, crowd, clip: as for COCO.
    """
    root = Path(root)
    if (root / "data.yaml").is_file():
        yield from read_yolo(root, split, task=task, names=names, clip=clip)
        return
    folder = root / split
    if not folder.is_dir():
        there = sorted(path.name for path in root.glob("*/")) if root.is_dir() else []
        raise ValueError(f"split: there is no folder {folder}; {root} has {', '.join(there) or 'none'}.")
    file = folder / "_annotations.coco.json"
    if file.is_file():
        yield from read_coco(file, folder, task, names, crowd, clip=clip)
    else:
        yield from read_voc(folder, folder, folder, task=task, names=names, clip=clip)


def read_fiftyone(
    root: str | Path,
    split: str | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: Crowd = "skip",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields the records of FiftyOne's COCODetectionDataset, VOCDetectionDataset and YOLOv5Dataset.

    Args:
        root: the folder that was exported to: `data` with labels.json or `labels`, or dataset.yaml.
        split: of dataset.yaml, where there are several.
        task, names, crowd, clip: as for COCO.
    """
    root = Path(root)
    if (root / "labels.json").is_file():
        yield from read_coco(root / "labels.json", root / "data", task, names, crowd, clip=clip)
    elif (root / "data").is_dir() and any((root / "labels").glob("*.xml")):
        yield from read_voc(root, root / "labels", root / "data", task=task, names=names, clip=clip)
    else:
        yield from read_yolo(root, split, task=task, names=names, clip=clip)


def read_via(
    root: str | Path,
    images: str | Path | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: Crowd = "skip",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields the records of the VGG Image Annotator's "Export Annotations (COCO format)".

    Args:
        root: the file, or a folder with that file alone.
        images: the folder of the pictures (default: as for COCO).
        task, names, crowd, clip: as for COCO.
    """
    root = Path(root)
    file = _chosen(sorted(root.glob("*.json")), None) if root.is_dir() else root
    content = read_annotations(file)
    projects = isinstance(content, dict) and ("_via_img_metadata" in content or "categories" not in content)
    if projects:
        raise ValueError(f"{file} is a project of VIA; choose Annotation > Export Annotations (COCO format) there.")
    yield from read_coco(file, images, task, names, crowd, clip=clip)


read_via.paths = lambda root, images=None, **others: unnamed_images(root, images)  # type: ignore[attr-defined]


def _chosen(files: Sequence[Path], split: str | None) -> Path:
    """Returns the only file, or the one of a split."""
    fitting = [path for path in files if split is None or path.stem.split("_", 1)[-1] == split]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(path.stem.split("_", 1)[-1] for path in files) or "none"
    if not files:
        raise ValueError("root: there is no JSON file in the folder.")
    raise ValueError(f"split is {split!r}, {files[0].parent} has {there}.")
