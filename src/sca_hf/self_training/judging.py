"""The second stage of self-training: what the judges say of each proposal, and which become labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..anything.folder import FolderRun, ImageCaptioner, fill_log, open_log
from ..anything.sources import ImageItem
from ..files import differences, hash_file, read_json, to_json, write_whole
from ..model_names import BUNDLED_MODEL
from ..run_identity import model_identity, versions
from ..run_log import RunLogError
from .judges import Judge, build_judges, judge_identity, judge_name, judged
from .manifest import MANIFEST, label_id, read_manifest, write_manifest
from .proposing import RECORDS, region_box
from .selection import Candidate, class_balance, select
from .settings import JUDGES, SelectionSettings
from .sheets import write_sheets


@dataclass
class JudgeRun(FolderRun):
    """What decides what the judges say.

    Attributes:
        proposals: The folder of the first stage.
        judges: Names of `JUDGES`, or functions of your own, `package.module:function`.
    """

    proposals: str = ""
    judges: tuple[str, ...] = JUDGES
    entries: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        names = [judge_name(name) for name in self.judges]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"judges are {', '.join(names) or 'none'}, expected at least one, and different names.")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {
            "model": model_identity(self.model, self.revision),
            "versions": versions(),
            "dtype": self.dtype,
            "proposals": hash_file(Path(self.proposals) / RECORDS),
            "judges": [judge_identity(name) for name in self.judges],
        }

    @property
    def columns(self) -> list[str]:
        """What the judges' columns are called."""
        return [judge_name(name) for name in self.judges]

    def items(self) -> list[ImageItem]:
        """Returns the pictures of the proposals.

        Raises:
            ValueError: The first stage was not finished, or its files are damaged.
        """
        path = Path(self.proposals) / RECORDS
        if not path.is_file():
            raise FileNotFoundError(f"{self.proposals} has no {RECORDS}: run `sca-hf self-train propose` to its end.")
        items = []
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    entry = json.loads(line)
                    picture = Path(self.proposals) / entry["file"]
                    self.entries[entry["image"]] = entry
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}, line {number} is not a proposal ({error}): propose again.") from None
                if not picture.is_file():
                    raise FileNotFoundError(f"there is no picture {picture}: run `sca-hf self-train propose` again.")
                items.append(ImageItem(entry["image"], str(picture)))
        if not items:
            raise ValueError(f"{path} has no pictures: nothing was proposed.")
        return items

    def lines(self, items: list[ImageItem]) -> Iterator[dict[str, Any]]:
        """Yields what the judges say of each picture."""
        teacher = ImageCaptioner(self)
        judges: dict[str | None, dict[str, Judge]] = {}
        for item in items:
            entry = self.entries[item.name]
            task = entry.get("task")
            if task not in judges:
                judges[task] = build_judges(self.judges, teacher.model, teacher.processor, task)
            try:
                said = judged(item.load(), entry["records"], judges[task])
            except (KeyError, TypeError, ValueError, OSError) as error:
                raise ValueError(f"{self.proposals}, image {item.name}: {error}") from error
            yield {"image": item.name, "picture": item.stamp, "judges": said}


@dataclass
class Judged:
    """What a judging came to.

    Attributes:
        manifest: The Parquet file.
        regions: How many were judged.
        kept: How many of them become labels.
        pictures: How many pictures these are in.
        left: Whether the manifest was there, and left as it is.
    """

    manifest: Path
    regions: int
    kept: int
    pictures: int
    left: bool = False

    def __str__(self) -> str:
        share = f" ({self.kept / self.regions:.0%})" if self.regions else ""
        text = f"{self.kept} of {self.regions} regions kept{share}, in {self.pictures} pictures: {self.manifest}"
        return f"{text} (edited since it was written: left as it is)" if self.left else text


def judge(
    run: JudgeRun,
    settings: SelectionSettings | None = None,
    rank: int = 0,
    world: int = 1,
    tiles: int = 48,
    progress: bool = True,
) -> Judged | None:
    """Asks the judges about every proposal, and writes the manifest; resumes where it was stopped.

    `run.output` gets `manifest.parquet`, `manifest.json` (settings, teacher, versions, classes) and `kept.png` and
    `refused.png`, for people to look at. Other selection settings need no further judging; a manifest that was edited
    since is never overwritten.

    Args:
        run: Who judges what.
        settings: What is kept; None: the defaults.
        rank: The number of this process, which takes every `world`-th picture.
        world: How many processes share the run.
        tiles: How many regions each sheet shows; 0 draws none.
        progress: Whether a bar shows how far the run is.

    Returns:
        What it came to; None in all processes but the first.

    Raises:
        ValueError: The manifest was edited, and other settings are asked for; or a file is damaged.
    """
    settings = settings or SelectionSettings()
    settings.check_judges(run.columns)
    items = run.items()
    fill_log(run, items, rank, world, run.lines, progress)
    log = open_log(run)
    keys = [item.key for item in items]
    lines = log.wait_for(keys) if world > 1 else log.lines()
    if rank:
        return None
    if missing := sum(key not in lines for key in keys):
        raise RunLogError(f"{run.output}: {missing} pictures came to no result; give the same command once more.")
    return _write(run, settings, log.entries(lines[key] for key in keys), tiles)


def _write(run: JudgeRun, settings: SelectionSettings, said: Iterable[dict[str, Any]], tiles: int) -> Judged:
    judges = {entry["image"]: entry["judges"] for entry in said}
    candidates = [
        Candidate(entry["image"], number, record["caption"], judges[entry["image"]][number - 1])
        for entry in run.entries.values()
        for number, record in enumerate(entry["records"], 1)
    ]
    select(candidates, settings)
    path = Path(run.output) / MANIFEST
    about = {**run.identity, "selection": asdict(settings)}
    kept = [one for one in candidates if one.kept]
    result = Judged(path, len(candidates), len(kept), len({one.image for one in kept}))
    if _was_edited(path, about):
        result.left = True
        return result
    # Without it the manifest is ours, also where a kill leaves one of the two.
    path.with_suffix(".json").unlink(missing_ok=True)
    write_manifest(path, _rows(run, candidates), run.columns)
    if tiles:
        write_sheets(Path(run.output), Path(run.proposals), run.entries, candidates, tiles)
    more = {"regions": result.regions, "kept": result.kept, "pictures": len(run.entries)}
    named = {"teacher": run.model or BUNDLED_MODEL, **more, "classes": class_balance(candidates)}
    write_whole(path.with_suffix(".json"), to_json({"run": about, **named, "sha256": hash_file(path)}))
    return result


def _was_edited(path: Path, about: dict[str, Any]) -> bool:
    """Whether the manifest that is there was edited; raises where it would have to be another one too."""
    file = path.with_suffix(".json")
    if not path.is_file() or not file.is_file():
        return False
    former = read_json(file, dict, "Remove it, and the manifest is written again.")
    if former.get("sha256") == hash_file(path):
        return False
    for _ in read_manifest(path):  # raises where it was damaged, not edited
        pass
    if changed := differences(former.get("run"), json.loads(json.dumps(about))):
        raise ValueError(
            f"{path} was edited since it was written, and would be overwritten by another selection "
            f"({'; '.join(changed[:3])}): choose another output, or remove it."
        )
    return True


def _rows(run: JudgeRun, candidates: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    teacher = run.identity["model"][:80]
    places = iter(candidates)
    for entry in run.entries.values():
        file = os.path.relpath(Path(run.proposals) / entry["file"], run.output)
        for record in entry["records"]:
            one, box = next(places), region_box(record)
            yield {
                **{name: entry.get(name) for name in ("image", "width", "height", "task")},
                **{"label_id": label_id(entry, box), "region": one.region, "file": Path(file).as_posix()},
                **{"box": box, "mask": record["segmentation"], "caption": one.caption, "views": record["views"]},
                **{"kept": one.kept, "reason": one.reason, "class": one.group, "combined": one.combined},
                **{"teacher": teacher, **one.judges},
            }
