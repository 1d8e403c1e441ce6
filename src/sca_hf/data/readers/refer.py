"""Reads RefCOCO, RefCOCO+, RefCOCOg and RefCLEF as the refer toolkit has them: refs(<split_by>).p, instances.json.

Its references are pickles of plain values: a pickle is a program, and this runs none.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...files import check_pickle
from ...processing.masks_sca import decode_rle, encode_rle
from ..region import RegionRecordError, category_text, check_names, naming
from .coco import mask_fields, segmentation_mask, xywh_box
from .common import Clip, Record, attempt, find_file, has_id, read_annotations, region_fields, rows_by_id


# Where the toolkit's own instructions put the pictures, seen from the folder of a data set.
_PICTURES = (
    "../images/mscoco/images/train2014",
    "../images/train2014",
    "../train2014",
    "../images/saiapr_tc-12",
    "../saiapr_tc-12",
    "images",
)


def read_refcoco(
    root: str | Path,
    split_by: str,
    split: str,
    images: str | Path | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    text: Literal["sent", "raw"] = "sent",
    masks: bool = True,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image, in the order of their ids; a region is one referred object with all its sentences.

    The pickle is read by an unpickler that admits plain values only.

    Args:
        root: the folder of one data set, as refer/data/refcoco+.
        split_by: whose split: unc or google for RefCOCO and RefCOCO+, umd or google for RefCOCOg, unc or berkeley for
            RefCLEF.
        split: train, val, test, testA, testB or testC, as the file has them. An image of RefCLEF's testAB is in testA
            and in testB; test is all of them.
        images: COCO's train2014, or saiapr_tc-12 for RefCLEF (default: where the toolkit has them, beside root).
        task: "caption" or "recognition"; regions have their sentences and their category in both.
        names: words for class names.
        text: "sent" is the sentence as the toolkit cleaned it, "raw" as it was typed.
        masks: read the segmentations, all parts of each; an empty one leaves the region its box alone.
        clip: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    root = Path(root)
    source = root / f"refs({split_by}).p"
    refs = _refs(source, split)
    pictures, annotations, categories = _instances(root / "instances.json")
    check_names(names, categories.values(), str(root))
    folders = [Path(images)] if images is not None else [root / folder for folder in _PICTURES]
    for ref in refs.pop(None, ()):
        yield RegionRecordError(f"{source}: a ref has no ref_id or image_id that is a number or a text: {ref!r:.100}")
    for image_id in sorted(refs, key=lambda key: (str(type(key)), key)):
        where = f"{source}, image {image_id}"
        record = attempt(where, _image_record, pictures.get(image_id), folders, where)
        if isinstance(record, RegionRecordError):
            yield record
            continue
        regions: list[Any] = []
        for ref in sorted(refs[image_id], key=lambda ref: (str(type(ref["ref_id"])), ref["ref_id"])):
            try:
                with naming(f"{where}, region {ref['ref_id']}"):
                    row = annotations[ref["ann_id"]]
                    size = (record["width"], record["height"])
                    fields = {
                        **(mask_fields(row.get("segmentation"), size, _refer_mask) if masks else {}),
                        "captions": [sentence[text] for sentence in ref["sentences"]],
                        "category": category_text(categories[row["category_id"]], names),
                    }
                    regions.append(region_fields(str(ref["ref_id"]), xywh_box(row["bbox"]), size, clip, **fields))
            except RegionRecordError as error:
                regions.append(error)
        yield {**record, "task": task, "regions": regions, "source": str(source)}


def _instances(path: Path) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, str]]:
    """Returns the images, the annotations and the names of the categories, each by id."""
    content = read_annotations(path)
    try:
        images, annotations, categories = (rows_by_id(content[key]) for key in ("images", "annotations", "categories"))
        return images, annotations, {key: str(row["name"]) for key, row in categories.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not in refer's format: {error} is missing.") from None


def _refs(path: Path, split: str) -> dict[Any, list[dict[str, Any]]]:
    """Returns the refs of a split by image."""
    if not path.is_file():
        there = sorted(p.name[5:-3] for p in path.parent.glob("refs(*).p"))
        raise ValueError(f"split_by: there is no file {path}; {path.parent} has {', '.join(there) or 'no refs(*).p'}.")
    refs = load_plain_pickle(path)
    try:
        splits = {str(ref["split"]) for ref in refs}
        chosen: dict[Any, list[dict[str, Any]]] = {}
        for ref in refs:
            if _is_in(str(ref["split"]), split):
                known = has_id(ref, "image_id") and has_id(ref, "ref_id")
                chosen.setdefault(ref["image_id"] if known else None, []).append(ref)
        if chosen.keys() == {None}:
            raise KeyError("ref_id or image_id")
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not in refer's format: expected a list of refs with split and ids ({error})."
        ) from None
    if not chosen:
        raise ValueError(f"split is {split!r}, {path} has {', '.join(sorted(splits)) or 'no refs'}.")
    return chosen


def _is_in(theirs: str, wanted: str) -> bool:
    """True where a ref of split `theirs` belongs to `wanted`: the letters of a test split say which it is part of."""
    if theirs.startswith("test") and wanted.startswith("test"):
        return set(wanted[4:]) <= set(theirs[4:])
    return theirs == wanted


def _image_record(row: Mapping[str, Any] | None, folders: list[Path], where: str) -> dict[str, Any]:
    if row is None:
        raise RegionRecordError(f"{where}: instances.json does not list this image")
    with naming(f"{where}: in instances.json a field is missing or not a number"):
        name, width, height = str(row["file_name"]), int(row["width"]), int(row["height"])
    stem = PurePosixPath(name).stem
    # imageCLEF's archive keeps its pictures in folders of a thousand.
    numbered = [f"{int(stem) // 1000:02d}/images/{stem}.jpg"] if stem.isascii() and stem.isdigit() else []
    path = find_file(folders, [name, *numbered])
    if path is None:
        looked = ", ".join(str(folder) for folder in folders if folder.is_dir()) or "any known folder"
        raise RegionRecordError(f"{where}: there is no picture {name!r} in {looked}; say images=FOLDER")
    return {"image": str(path), "image_id": str(row["id"]), "width": width, "height": height}


def _refer_mask(segmentation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """Returns the union of all parts as one RLE: polygons, one RLE, or, as in RefCLEF, a list of RLEs.

    size: width and height of the image.
    """
    if not isinstance(segmentation, list) or not any(isinstance(part, Mapping) for part in segmentation):
        return segmentation_mask(segmentation, size)
    width, height = size
    union = None
    for part in segmentation:
        mask = decode_rle(part, "segmentation", (height, width))
        union = mask if union is None else union | mask
    return encode_rle(union) if union is not None and union.any() else None


# Lists, tuples, dicts, strings, numbers, True, False and None have opcodes of their own; of what goes by a name, files
# of plain values need no more than these.
_PLAIN_CLASSES = {
    (module, name): kind
    for module in ("builtins", "__builtin__")  # of Python 3 and 2
    for name, kind in (("set", set), ("frozenset", frozenset))
}


_DEEPEST = 100


class _PlainUnpickler(pickle.Unpickler):
    """Admits no class or function but those of `_PLAIN_CLASSES`, so that nothing of the file's choice is called."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _PLAIN_CLASSES[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it loads {module_name}.{global_name}, which plain values do not need"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def _check_tree(values: Any, size: int) -> None:
    """Refuses values that are deeper than any data set, or of more parts than a file of `size` bytes can write out."""
    rest, parts = [(values, 1)], 0
    while rest:
        value, depth = rest.pop()
        parts += 1
        if parts > size or depth > _DEEPEST:
            raise pickle.UnpicklingError("its values contain each other, or are nested too deeply")
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        rest += [(one, depth + 1) for one in inner if isinstance(one, dict | list | tuple | set | frozenset)]


def load_plain_pickle(path: str | Path) -> Any:
    """Returns what a pickle holds: lists, tuples, dicts, sets, strings, numbers, True, False, None.

    Strings of Python 2 are read as UTF-8, or, where they are not, all of them as Latin-1. Whatever else the file asks
    for is a ValueError that names it, and nothing of it is run. So are values that share their parts, which written
    out have no end: reading takes at most what an honest file of the same size takes.
    """
    with Path(path).open("rb") as file:
        try:
            check_pickle(file)
            try:
                file.seek(0)
                values = _PlainUnpickler(file, encoding="utf-8").load()
            except UnicodeDecodeError:
                file.seek(0)
                values = _PlainUnpickler(file, encoding="latin-1").load()
            _check_tree(values, Path(path).stat().st_size)
            return values
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} is not a pickle of plain values: {error}.") from None
        except Exception as error:  # noqa: BLE001, a damaged file does whatever it likes to the unpickler
            raise ValueError(f"{path} is not a pickle of plain values: {type(error).__name__}: {error}.") from None
