"""METEOR 1.5 by its reference program (extra `java`); other versions give other numbers."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence

import numpy as np

from .java import find_jar, find_java, one_line
from .results import MetricResult, Sums, Tokens, check_pairs


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
    shares = _divide(_DELTA * content + (1 - _DELTA) * function, weighted)
    precision, recall = shares[..., 0], shares[..., 1]
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

    def ask(self, *fields: str, answers: int = 1) -> list[str]:
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
            raise RuntimeError(f"METEOR ended before it answered: {said[-1] if said else 'it said nothing'}.")
        return [line.decode().strip() for line in lines]


def _statistics(program: _Program, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[str]:
    pairs = zip(candidates, references, strict=True)
    return [program.ask("SCORE", *(one_line(" ".join(text)) for text in (*refs, said)))[0] for said, refs in pairs]


def _evaluate(program: _Program, statistics: list[str]) -> MetricResult:
    scores = [float(line) for line in program.ask("EVAL", *statistics, answers=len(statistics) + 1)]
    return {"corpus": scores[-1], "per_item": scores[:-1]}
