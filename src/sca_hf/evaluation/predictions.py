"""Predictions of region captions: one record per region, and files of them.

`.jsonl` (one record a line) and `.parquet` (one a row) hold every field; `.json` is the layout of the original
authors' evaluation, a list of `_id`, `split`, `references`, `candidates`, `metadata` and `logits.iou_scores`.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

from ..data.prompts import PROMPT_KINDS
from ..environment import install_command
from ..files import has_lone_surrogate, hash_file, json_line, read_json, replacing, to_json, write_whole
from ..processing.languages_sca import language_tag
from ..processing.masks_sca import decode_rle, encode_rle, rle_size


_ROWS_PER_BATCH = 4096


class PredictionError(ValueError):
    """Predictions that cannot be used; the message names file, line and record."""


@dataclass
class PredictionRecord:
    """What a system says of one region, and what it should have said. Coordinates are pixels of the original image.

    references: true captions, at least one.
    candidates: what was said, one text per head, at least one; a text may be empty.
    image_id, region_id: where the region comes from; None where a file gives only an `id`.
    id: unique in its file; `image_id/region_id` where it is None.
    box: xyxy, far edges exclusive.
    prompt: how the region was shown to the system, one of `PROMPT_KINDS`.
    language: of references and candidates, a tag of BCP 47; None where it is not said.
    category: the true name of what the region shows.
    scores: of each candidate, for instance its mean log-probability.
    iou_scores: predicted mask IoU, of each candidate, which then picks the one that counts. With one candidate there
        may be as many as the system predicts masks.
    mask: COCO RLE of the predicted mask, the one with the best of `iou_scores`.
    masks: COCO RLEs of all predicted masks, in the order of `iou_scores`.
    reference_mask: COCO RLE of the true mask.
    system: what made the prediction.
    metadata: anything else, as JSON.
    """

    references: list[str]
    candidates: list[str]
    image_id: str | None = None
    region_id: str | None = None
    id: str | None = None
    width: int | None = None
    height: int | None = None
    box: list[float] | None = None
    prompt: str | None = None
    task: str | None = None
    language: str | None = None
    category: str | None = None
    scores: list[float] | None = None
    iou_scores: list[float] | None = None
    mask: dict[str, Any] | None = None
    masks: list[dict[str, Any]] | None = None
    reference_mask: dict[str, Any] | None = None
    system: str | None = None
    metadata: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("image_id", "region_id", "id"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else str(value))
        if self.id is None and self.image_id is not None and self.region_id is not None:
            self.id = f"{self.image_id}/{self.region_id}"
        if self.language is not None:
            try:
                self.language = language_tag(self.language)
            except ValueError as error:
                raise PredictionError(f"record {self.id}: {error}") from None
        self.mask, self.reference_mask = _as_rle(self.mask), _as_rle(self.reference_mask)
        self.masks = [_as_rle(mask) for mask in self.masks] if isinstance(self.masks, list) else self.masks
        self.validate()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PredictionRecord:
        """Builds a record from our fields or from the original authors'; fields of neither go to `metadata`."""
        if not isinstance(values, Mapping):
            raise PredictionError(f"is a {type(values).__name__}, expected an object with references and candidates")
        flat = _flat(values)
        known: dict[str, Any] = {name: value for name, value in flat.items() if name in _NAMES}
        others = {name: value for name, value in flat.items() if name not in _NAMES}
        for name in ("references", "candidates"):
            if name not in known:
                raise PredictionError(f"record {known.get('id', '?')}: the field {name} is missing")
        if others:
            known["metadata"] = {**(known.get("metadata") or {}), **others}
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as plain values, those that are None left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def to_json(self) -> str:
        """Returns the record as one line of JSON, without its line end."""
        return json_line(self.to_dict())

    def to_original(self) -> dict[str, Any]:
        """Returns the record as the original authors' evaluation has it; what that lacks is in `metadata`."""
        values = self.to_dict()
        metadata = dict(values.pop("metadata", {}))
        original = {"_id": values.pop("id"), "split": metadata.pop("split", _SPLIT)}
        original |= {name: values.pop(name) for name in ("references", "candidates")}
        original["logits"] = {"iou_scores": values.pop("iou_scores", None)}
        for ours, theirs in _ORIGINAL_METADATA.items():
            if ours in values:
                metadata[theirs] = values.pop(ours)
        if values:
            metadata[_OTHERS] = values
        return {**original, "metadata": metadata}

    @property
    def best(self) -> int:
        """Index of the candidate that counts: the best by predicted IoU, the first of equals."""
        if len(self.candidates) == 1:
            return 0
        return max(range(len(self.candidates)), key=(self.iou_scores or []).__getitem__)

    @property
    def caption(self) -> str:
        """The candidate that counts."""
        return self.candidates[self.best]

    def validate(self) -> None:
        """Raises `PredictionError` on the first thing that is wrong."""
        problem = _text_problem(self) or _score_problem(self) or _place_problem(self)
        if problem:
            raise PredictionError(f"record {self.id}: {problem}")


_NAMES = {field.name for field in fields(PredictionRecord)}
_SPLIT = "inference"  # of every record of the original
_OTHERS = "sca_hf"  # where in its metadata our fields stand that it lacks
_ORIGINAL_METADATA = {
    "box": "metadata_input_boxes",
    "image_id": "metadata_image_id",
    "region_id": "metadata_region_id",
}


def read_predictions(path: str | Path) -> list[PredictionRecord]:
    """Reads a file of predictions, `.jsonl`, `.parquet` or the original authors' `.json`.

    Raises:
        PredictionError: where a record is bad, an id comes twice, or there is no record; names file and line or row.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise PredictionError(f"{path}: prediction files must end with {', '.join(_READERS)}.")
    records: list[PredictionRecord] = []
    places: dict[str | None, str] = {}
    for place, row in _READERS[path.suffix](path):
        try:
            record = PredictionRecord.from_dict(row)
        except PredictionError as error:
            raise PredictionError(f"{path}, {place}: {error}.") from None
        if record.id in places:
            raise PredictionError(f"{path}, {place}: the id {record.id} is already used by {places[record.id]}.")
        places[record.id] = place
        records.append(record)
    if not records:
        raise PredictionError(f"{path} has no predictions.")
    return records


def write_predictions(records: Iterable[PredictionRecord], path: str | Path) -> None:
    """Writes a file of predictions, in the format of its name: `.jsonl`, `.parquet`, or `.json` as the original."""
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise PredictionError(f"{path}: prediction files must end with {', '.join(_WRITERS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        _WRITERS[path.suffix](records, draft)


def check_output(output: Path) -> None:
    """Raises unless predictions can be written under this name: their format, and nothing there but a run."""
    if output.suffix not in _WRITERS:
        raise PredictionError(f"{output}: prediction files must end with {', '.join(_WRITERS)}.")
    if run_file(output).exists():
        return
    if output.exists():
        raise PredictionError(f"{output} already exists and is not from a run: name another file or remove it.")
    if strays := sorted(output.parent.glob(f"{glob.escape(output.name)}.part-*")):
        raise PredictionError(f"{strays[0]} is left over from another run: remove it, or name another file.")


def run_file(output: Path) -> Path:
    """Returns the state file of the run that wrote a file of predictions."""
    return output.with_name(output.name + ".run.json")


def read_run(output: str | Path) -> dict[str, Any] | None:
    """Returns what is known of the run that wrote a file of predictions, None where nothing is.

    Raises:
        PredictionError: The run is not complete.
    """
    state_file = run_file(Path(output))
    if not state_file.exists():
        return None
    state = read_json(state_file)
    if not isinstance(state, dict):
        raise PredictionError(f"{state_file} holds a {type(state).__name__}, expected what is known of a run.")
    if not state.get("complete"):
        raise PredictionError(
            f"{output} is not complete: run the command that started it again; see {state_file.name}."
        )
    return state


def check_complete(records: Sequence[PredictionRecord], output: Path, run: Mapping[str, Any] | None) -> None:
    """Raises where a file of predictions is not what the run that wrote it left: by its count, then by its sum."""
    expected, sha256 = (None if run is None else run.get(name) for name in ("records", "sha256"))
    again = "it was changed since. Remove it and give the command that began it once more"
    if expected is not None and len(records) != expected:
        raise PredictionError(f"{output} has {len(records)} of the {expected} records that its run wrote: {again}.")
    if sha256 is not None and sha256 != hash_file(output):
        raise PredictionError(
            f"{output} does not hold what its run wrote: {again}; or remove {run_file(output)} to take it as it is."
        )


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    # In binary, a line ends with \n and with nothing else.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _parse(line, f"{path}, line {number}")


def _read_original(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parse(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise PredictionError(f"{path}: holds a {type(rows).__name__}, expected a list of records.")
    yield from ((f"record {index}", row) for index, row in enumerate(rows, 1))


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    pyarrow, parquet = _pyarrow()
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(_ROWS_PER_BATCH):
            for row in batch.to_pylist():
                number += 1
                if isinstance(row.get("metadata"), str):
                    row["metadata"] = _parse(row["metadata"], f"{path}, row {number}")
                yield f"row {number}", {name: value for name, value in row.items() if value is not None}
    except pyarrow.ArrowInvalid as error:
        raise PredictionError(f"{path} cannot be read as Parquet: {error}.") from error


def _write_jsonl(records: Iterable[PredictionRecord], path: Path) -> None:
    write_whole(path, (record.to_json() + "\n" for record in records))


def _write_original(records: Iterable[PredictionRecord], path: Path) -> None:
    rows = [record.to_original() for record in records]
    write_whole(path, to_json(rows))


def _write_parquet(records: Iterable[PredictionRecord], path: Path) -> None:
    pyarrow, parquet = _pyarrow()
    rle = pyarrow.struct([("size", pyarrow.list_(pyarrow.int32())), ("counts", pyarrow.string())])
    texts, numbers = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
    kinds = {"references": texts, "candidates": texts, "box": numbers, "scores": numbers, "iou_scores": numbers}
    kinds |= {"width": pyarrow.int32(), "height": pyarrow.int32()}
    kinds |= {"mask": rle, "masks": pyarrow.list_(rle), "reference_mask": rle}
    schema = pyarrow.schema(
        [(field.name, kinds.get(field.name, pyarrow.string())) for field in fields(PredictionRecord)]
    )
    rows = [record.to_dict() for record in records]
    for row in rows:
        if "metadata" in row:
            row["metadata"] = json.dumps(row["metadata"], ensure_ascii=False, allow_nan=False)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".json": _read_original}
_WRITERS = {".jsonl": _write_jsonl, ".parquet": _write_parquet, ".json": _write_original}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"predictions in Parquet need pyarrow: {install_command('eval')}") from error
    return pyarrow, parquet


def _parse(text: bytes | str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PredictionError(f"{where}: is not JSON: {error}.") from None


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Our names for the fields of either layout; the original's is known by its `_id`."""
    flat = dict(values)
    if "_id" not in flat:
        return flat
    flat.setdefault("id", flat.pop("_id"))
    if flat.get("split") == _SPLIT:
        del flat["split"]
    logits = flat.pop("logits", None)
    if isinstance(logits, Mapping):
        flat.setdefault("iou_scores", logits.get("iou_scores"))
    metadata = flat.get("metadata")
    if isinstance(metadata, Mapping):
        rest = dict(metadata)
        for ours, theirs in _ORIGINAL_METADATA.items():
            if theirs in rest:
                flat.setdefault(ours, _single(rest.pop(theirs)))
        others = rest.pop(_OTHERS, None)
        flat.update(others if isinstance(others, Mapping) else {})
        flat["metadata"] = rest or None
    return flat


def _single(value: Any) -> Any:
    """The one element of a batch of one."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _as_rle(mask: Any) -> Any:
    """An RLE with its counts as a string, as JSON and Parquet can both hold."""
    if not isinstance(mask, Mapping) or "counts" not in mask:
        return mask
    counts = mask["counts"]
    try:
        if isinstance(counts, str | bytes):
            size = list(rle_size(dict(mask)))
            return {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
        return encode_rle(decode_rle(dict(mask)))
    except ValueError as error:
        raise PredictionError(str(error)) from None


def _text_problem(record: PredictionRecord) -> str | None:
    if record.id is None:
        return "there is no id, and no image_id with a region_id"
    for name in ("references", "candidates"):
        texts = getattr(record, name)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return f"{name} is {_short(texts)}, expected a list of texts"
        if not texts:
            return f"there is no {name[:-1]}"
        if any(has_lone_surrogate(text) for text in texts):
            return f"{name} has an unpaired surrogate: {_short(texts)}"
    return None


def _score_problem(record: PredictionRecord) -> str | None:
    count = len(record.candidates)
    for name in ("scores", "iou_scores"):
        values = getattr(record, name)
        if values is not None and not _finite_list(values):
            return f"{name} is {_short(values)}, expected a list of finite numbers"
    if record.scores is not None and len(record.scores) != count:
        return f"there are {count} candidates but {len(record.scores)} scores"
    if count > 1 and not record.iou_scores:
        return f"there are {count} candidates but no iou_scores to choose between them"
    if count > 1 and len(record.iou_scores or ()) != count:
        return f"there are {count} candidates and {len(record.iou_scores or ())} iou_scores"
    if record.masks is not None and len(record.masks) != len(record.iou_scores or ()):
        return f"there are {len(record.masks)} masks and {len(record.iou_scores or ())} iou_scores"
    return None


def _place_problem(record: PredictionRecord) -> str | None:
    if record.box is not None and not (_finite_list(record.box) and len(record.box) == 4):
        return f"box is {_short(record.box)}, expected four finite numbers x1, y1, x2, y2"
    if record.prompt is not None and record.prompt not in PROMPT_KINDS:
        return f"prompt is {record.prompt!r}, expected one of {', '.join(PROMPT_KINDS)}"
    masks = [("mask", record.mask), ("reference_mask", record.reference_mask)]
    masks += [("masks", mask) for mask in record.masks or ()]
    sizes = [[record.height, record.width]] if record.height is not None and record.width is not None else []
    for name, mask in masks:
        if mask is None:
            continue
        if not isinstance(mask, Mapping) or not {"size", "counts"} <= set(mask):
            return f"{name} is {_short(mask)}, expected a COCO RLE with size and counts"
        sizes.append(list(mask["size"]))
        if sizes[-1] != sizes[0]:
            return f"{name} is of size {sizes[-1]}, expected [height, width] = {sizes[0]}"
    return None


def _finite_list(values: Any) -> bool:
    return isinstance(values, Sequence) and all(isinstance(v, Real) and abs(v) < 1e300 for v in values)  # type: ignore[operator]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
