"""Captions every region of a data set with any captioner: what `sca-hf predict` does, without the command line.

Regions are prompted with coordinates in pixels of the original image, where the authors' ablation drew in the resized
one.
"""

from __future__ import annotations

import glob
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from ..data.notes import NOTES
from ..data.prompts import PROMPT_KINDS, PromptSource, draw_prompt
from ..data.region import record_image
from ..data.writers import Shapes, WriteReport, write_regions
from ..files import LockedError, hash_file
from ..parallel import count_workers, run_ahead
from ..processing.languages_sca import language_tag
from ..processing.masks_sca import encode_rle
from ..processing.region_prompts_sca import RegionPrompt
from ..run_identity import all_versions, data_identity, versions
from ..run_log import Line, RunLog, RunLogError, torchrun_rank
from .captioners.controls import BlankImages
from .captioners.interface import Captioner, ImageQuery, RegionPrediction, RegionQuery
from .captioners.sca import ScaCaptioner
from .predictions import (
    PredictionError,
    PredictionRecord,
    check_complete,
    check_output,
    read_predictions,
    run_file,
    write_predictions,
)
from .protocols import check_counts, find_protocol
from .rows import batches, choose_language, count_regions, open_rows, unique_rows


Masks = Literal["none", "best", "all"]


@dataclass(frozen=True)
class PredictSettings:
    """How to predict.

    Attributes:
        prompt: How regions are shown, see [`build_query`]; None: by box, or as the protocol has it.
        protocol: A name of `PROTOCOLS`; the data must have its counts.
        seed: The seed of random prompts and of sampling.
        batch_size: How many images are captioned at a time. Results may differ in their last bits by this.
        masks: Which predicted masks are kept, with the true ones: "none", "best" (by expected IoU) or "all".
        system: What records call the captioner; None: its own name.
        language: A tag of BCP 47: captions are asked for in this language, and compared with references in it alone.
            None: as the protocol, or our captioner, has it.
    """

    prompt: str | None = None
    protocol: str | None = None
    seed: int = 0
    batch_size: int = 8
    masks: Masks = "none"
    system: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        own = None if self.protocol is None else find_protocol(self.protocol).language
        if self.language is not None and own not in (None, language_tag(self.language)):
            raise ValueError(f"{self.protocol} has captions in {own}, not in {self.language}.")
        object.__setattr__(self, "language", own if self.language is None else language_tag(self.language))
        if self.protocol is not None and self.prompt not in (None, find_protocol(self.protocol).prompt):
            raise ValueError(
                f"{self.protocol} shows regions by {find_protocol(self.protocol).prompt}, not by {self.prompt}."
            )
        if self.shown_by not in PROMPT_KINDS:
            raise ValueError(f"prompt is {self.prompt!r}, expected one of {', '.join(PROMPT_KINDS)}.")
        if self.masks not in ("none", "best", "all"):
            raise ValueError(f"masks is {self.masks!r}, expected none, best or all.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1.")

    @property
    def shown_by(self) -> str:
        """The prompt, as said or by default."""
        if self.prompt is not None:
            return self.prompt
        return "box" if self.protocol is None else find_protocol(self.protocol).prompt


def predict(
    captioner: Captioner,
    data: Mapping[str, Any],
    output: str | Path,
    settings: PredictSettings | None = None,
    command: str | None = None,
    progress: bool = True,
    num_workers: int | None = None,
) -> Path:
    """Writes one record per region; resumes where a run of the same settings was stopped, with the same result.

    Under torchrun the processes share the batches, and the first one puts the file together in the data's order.

    Args:
        captioner: The captioner, see [`load_captioner`].
        data: A data spec, see [`load_spec`].
        output: The file to write: .jsonl, .parquet, or .json as the original authors have it.
        settings: How to predict; None: the defaults.
        command: The command line that the run file names.
        progress: Whether to show a bar.
        num_workers: How many processes share our model on a CPU, see [`count_workers`]; others caption in this one.

    Raises:
        PredictionError: The file is of another run.
        ProtocolError: The data are not the protocol's.
    """
    settings = settings or PredictSettings()
    if settings.shown_by == "random_point_in_mask" and not captioner.segments:
        raise ValueError(f"{captioner.name} predicts no masks to draw a point from; choose another prompt.")
    workers = _count_workers(num_workers, captioner)
    rows, language = open_rows(data), settings.language or getattr(captioner, "language", None)
    chosen = choose_language(rows, language)
    if settings.protocol is not None:
        check_counts(settings.protocol, *count_regions(rows, chosen))
    rank, processes = torchrun_rank()
    about, notes = _identity(captioner, rows, settings), _notes(settings, data, command)
    try:
        run = PredictionRun(Path(output), about, notes, rank, processes)
        if run.complete:
            run.check()
        else:
            total = len(rows) if hasattr(rows, "__len__") else None  # streams do not know
            with run, tqdm(total=total, desc="predict", unit=" images", disable=not progress or rank) as bar:
                _fill(run, unique_rows(rows, chosen), captioner, replace(settings, language=language), bar, workers)
    except (RunLogError, LockedError) as error:
        raise PredictionError(str(error)) from None
    return run.output


def _fill(
    run: PredictionRun,
    rows: Iterator[dict[str, Any]],
    captioner: Captioner,
    settings: PredictSettings,
    bar: Any,
    workers: int,
) -> None:
    """Predicts the batches of this process that are not there yet, and ends its part of the work."""
    if run.complete:
        return
    keys: list[str] = []

    def tasks() -> Iterator[tuple[int, list[dict[str, Any]]]]:
        for number, batch in enumerate(batches(rows, settings.batch_size)):
            expected = [row for image in batch for row in _expected(image)]
            keys.extend(map(record_key, expected))
            if number % run.processes == run.rank and not run.skip(expected):
                yield number, batch
            else:
                bar.update(len(batch))

    def predicted(task: tuple[int, list[dict[str, Any]]]) -> tuple[int, list[PredictionRecord]]:
        number, batch = task
        torch.manual_seed(settings.seed + number)
        return len(batch), _predicted(captioner, batch, settings)

    for count, records in run_ahead(predicted, tasks(), workers):
        run.append(records)
        bar.update(count)
    run.finish(keys)


def _count_workers(wanted: int | None, captioner: Captioner) -> int:
    captioner = captioner.captioner if isinstance(captioner, BlankImages) else captioner
    if isinstance(captioner, ScaCaptioner):
        return count_workers(wanted, captioner.model)
    if wanted:
        raise ValueError(f"num_workers is {wanted}, but {captioner.name} captions in one process: pass 0.")
    return 0


def _expected(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what is known of a record before anything is predicted."""
    by_caption = row["task"] == "caption"
    return [
        {
            "image_id": row["image_id"],
            "region_id": region["region_id"],
            "box": list(region["box"]),
            "references": list(region["captions"]) if by_caption else [region["category"]],
        }
        for region in row["regions"]
    ]


def _predicted(
    captioner: Captioner, batch: Sequence[dict[str, Any]], settings: PredictSettings
) -> list[PredictionRecord]:
    filled = [row for row in batch if row["regions"]]
    if not filled:
        return []
    asked = [build_query(row, settings.shown_by, settings.seed, settings.language) for row in filled]
    answers = captioner.caption_regions(asked, with_masks=settings.masks != "none")
    return [
        record
        for row, image, said in zip(filled, asked, answers, strict=True)
        for record in _records(row, image, said, settings, captioner)
    ]


def _records(
    row: Mapping[str, Any],
    image: ImageQuery,
    answers: Sequence[RegionPrediction],
    settings: PredictSettings,
    captioner: Captioner,
) -> Iterator[PredictionRecord]:
    for region, known, answer in zip(row["regions"], _expected(row), answers, strict=True):
        masks = {} if settings.masks == "none" else _masks(answer, region, settings.masks)
        yield PredictionRecord(
            **known,
            **masks,
            candidates=answer.candidates,
            width=image.image.width,
            height=image.image.height,
            prompt=settings.shown_by,
            task=row["task"],
            language=settings.language,
            category=region["category"],
            scores=answer.scores,
            iou_scores=answer.iou_scores,
            metadata=None if answer.agreements is None else {"agreements": answer.agreements},
            system=settings.system or captioner.name,
        )


def _masks(answer: RegionPrediction, region: Mapping[str, Any], kept: Masks) -> dict[str, Any]:
    true = region["mask"]
    found: dict[str, Any] = {"reference_mask": true if true and true.get("counts") else None}
    if answer.masks is not None and answer.best_mask is not None:
        found["mask"] = encode_rle(answer.best_mask)
        if kept == "all":
            found["masks"] = [encode_rle(mask) for mask in answer.masks]
    return found


def _identity(captioner: Captioner, rows: Any, settings: PredictSettings) -> dict[str, Any]:
    """Returns what the records depend on."""
    return {
        "data": data_identity(rows),
        "versions": versions(),
        "captioner": captioner.settings(),
        **{name: value for name, value in asdict(settings).items() if name != "language" or value is not None},
        "prompt": settings.shown_by,
        "system": settings.system or captioner.name,
    }


def _notes(settings: PredictSettings, data: Mapping[str, Any], command: str | None) -> dict[str, Any]:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"protocol": settings.protocol, "command": command, "data": dict(data), "began": began}
    return {**about, "versions": all_versions()}


def write_for_tool(
    predictions: str | Path, data: Mapping[str, Any], folder: str | Path, tool: str, shapes: Shapes = "pixels"
) -> WriteReport:
    """Writes what was said of the regions of a data set as an annotation tool imports it.

    Args:
        predictions: What [`predict`] wrote.
        data: The spec of the data set that it describes.
        folder: The folder to make.
        tool: A key of `WRITERS`.
        shapes: What regions are, see [`write_regions`].
    """
    said = {(record.image_id, record.region_id): record for record in read_predictions(predictions)}
    rows, language = open_rows(data), next(iter(said.values())).language
    chosen = None if language is None else choose_language(rows, language)

    def records() -> Iterator[dict[str, Any]]:
        for row in unique_rows(rows, chosen):
            regions = []
            for region in row["regions"]:
                record = said[row["image_id"], region["region_id"]]
                # The data's own mask was drawn with more care than the predicted one.
                own = region["mask"] and region["mask"].get("counts")
                mask = region["mask"] if own else record.mask
                notes = {**dict.fromkeys(NOTES), **({"languages": [language]} if language else {})}
                regions.append({**region, "captions": [record.caption], **notes, "mask": mask})
            yield {**row, "regions": regions}

    return write_regions(tool, records(), folder, shapes)


class PredictionRun:
    """The files of a run of predictions: written as it goes, resumable after a kill, shared by several processes.

    Beside `output` is `OUTPUT.run.json`, the state file of its [`RunLog`]. Each process appends records to a part of
    its own; a single one that writes JSON lines, to `output` itself.

    Args:
        output: The file to write, .jsonl, .parquet or .json, see [`write_predictions`].
        settings: Everything that the records depend on, as JSON values.
        notes: What else is worth knowing of the run; kept as it was when the run began.
        rank: Which of the processes this one is.
        processes: How many processes share the run.

    Raises:
        PredictionError: `output` is of a run with other settings, or of none.
    """

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.output, self.rank, self.processes = output, rank, processes
        check_output(output)
        in_place = processes == 1 and output.suffix == ".jsonl"
        self.part = output if in_place else self._part(rank)
        pattern = glob.escape(output.name) + ("" if in_place else ".part-*")
        settings = {**settings, "processes": processes}
        self._log = RunLog(output, run_file(output), settings, self.part, pattern, _head, notes)
        self.complete: bool = self._log.state["complete"] and output.exists()
        if self.complete:
            self._drop_parts()
        elif self._log.state["complete"]:  # and its file was removed: from scratch
            self._log.update(complete=False)
        self._place = 0  # how many of the lines that a former run left are gone past

    def __enter__(self) -> PredictionRun:
        self._log.__enter__()
        if self._log.state["complete"]:  # another process has just put it together
            self.complete = True
            self._log.close()
            self._drop_parts()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._log.close()

    def skip(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Returns whether these rows, the next of this process's, are predicted; if not, drops what is left of them.

        Args:
            rows: What is known of the records.
        """
        found = self._log.own[self._place : self._place + len(rows)]
        for number, (line, row) in enumerate(zip(found, rows, strict=False), self._place + 1):
            if (line.key, line.about) != (record_key(row), _given(row)):
                raise PredictionError(
                    f"{self.part}, line {number} is not of image {row['image_id']}, region {row['region_id']}, or not "
                    "as the data have it: it was changed. Remove it and all lines after it, and run the same command."
                )
        if len(found) == len(rows):
            self._place += len(rows)
            return True
        if found:
            # A batch is predicted again as a whole: the same company gives the same bits.
            self._log.cut(self._place)
        return False

    def append(self, records: Sequence[PredictionRecord]) -> None:
        """Writes the records of a batch; what a kill leaves of them is dropped when the run is resumed."""
        self._log.append(record.to_json() for record in records)

    def finish(self, keys: Sequence[str]) -> None:
        """Ends this process's part of the work; the first process waits for the others and puts `output` together.

        Args:
            keys: Of all records of the run, in the order of the data, see [`record_key`].
        """
        if self._place < len(self._log.own):
            raise PredictionError(f"{self.part} has {len(self._log.own)} records, the data only {self._place}.")
        self._log.close()
        if self.rank != 0:
            self._log.wait_for(keys)
            return
        if self.part != self.output:
            lines = self._log.wait_for(keys) if self.processes > 1 else self._own_lines(keys)
            entries = self._log.entries(lines[key] for key in keys)
            write_predictions((PredictionRecord.from_dict(entry) for entry in entries), self.output)
        self._look(keys)
        self._log.update(complete=True, records=len(keys), sha256=hash_file(self.output))
        self._drop_parts()

    def _own_lines(self, keys: Sequence[str]) -> dict[str, Line]:
        lines = self._log.lines()
        if missing := sum(key not in lines for key in keys):
            raise PredictionError(
                f"{self.part} is missing {missing} of the {len(keys)} records: it was changed in the meantime."
            )
        return lines

    def _look(self, keys: Sequence[str]) -> None:
        """Reads what was written: only what is there may be called complete."""
        again = "Nothing is marked as complete; run the same command again."
        if not self.output.is_file():
            raise PredictionError(f"{self.output} was removed while it was being written. {again}")
        if keys and [record_key(vars(record)) for record in read_predictions(self.output)] != list(keys):
            raise PredictionError(
                f"{self.output} does not contain what was written to it: it was changed in the meantime. {again}"
            )

    def check(self) -> None:
        """Raises unless the finished file is what the run wrote."""
        count = self._log.state.get("records")
        records = [] if count == 0 and not self.output.stat().st_size else read_predictions(self.output)
        check_complete(records, self.output, self._log.state)

    def _part(self, rank: int) -> Path:
        return self.output.with_name(f"{self.output.name}.part-{rank + 1}-of-{self.processes}")

    def _drop_parts(self) -> None:
        for path in {self._part(rank) for rank in range(self.processes)}:
            path.unlink(missing_ok=True)


def record_key(row: Mapping[str, Any]) -> str:
    """Returns what tells a record apart from all others of its run."""
    return json.dumps([row["image_id"], row["region_id"]])


def _head(line: bytes) -> tuple[str, int]:
    row = json.loads(line)
    if not isinstance(row, dict) or not {"image_id", "region_id", "box", "references"} <= set(row):
        raise ValueError("not a record")
    return record_key(row), _given(row)


def _given(row: Mapping[str, Any]) -> int:
    """Returns a sum of what a record has from the data."""
    return zlib.crc32(json.dumps([row["box"], row["references"]]).encode())


def build_query(row: Mapping[str, Any], kind: str = "box", seed: int = 0, language: str | None = None) -> ImageQuery:
    """Opens the picture of a record and prompts each of its regions.

    Args:
        row: A record as `data.region.region_features` has it, the image decoded or not.
        kind: One of `data.prompts.PROMPT_KINDS`; for `random_point_in_mask` the captioner draws the point.
        seed: The seed of what is random; a region's draw depends on nothing but this, the kind and the ids.
        language: In which captions are asked for.

    Raises:
        RegionRecordError: The picture cannot be opened or has another size, or a region lacks what the kind shows.
    """
    if kind not in PROMPT_KINDS:
        raise ValueError(f"prompt is {kind!r}, expected one of {', '.join(PROMPT_KINDS)}.")
    image = record_image(row)
    regions = [_region(region, image.size, kind, seed, row["image_id"]) for region in row["regions"]]
    return ImageQuery(image, row["image_id"], regions, row["task"], language)


def _region(region: Mapping[str, Any], size: tuple[int, int], kind: str, seed: int, image_id: str) -> RegionQuery:
    source = PromptSource(region, size, f"image {image_id}, region {region['region_id']}")
    box = source.box.tolist()
    number = _number(seed, kind, image_id, region["region_id"])
    if kind == "random_point_in_mask":
        return RegionQuery(region["region_id"], box, RegionPrompt(box=box), number)
    drawn = draw_prompt(kind, source, np.random.default_rng(number), strict=True)
    prompt = RegionPrompt(
        box=drawn.get("input_boxes"),
        points=drawn.get("input_points", []),
        labels=drawn.get("input_labels", []),
        mask=drawn.get("input_masks"),
    )
    return RegionQuery(region["region_id"], box, prompt)


def _number(*parts: Any) -> int:
    """Returns a number that differs with every part, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")
