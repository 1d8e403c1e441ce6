"""CPU time of what should come at once, and of commands up to their first line: `python -m benchmarks.startup`."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import sca_hf


PROGRAM = [sys.executable, "-m", "sca_hf"]
CALLS = {
    "python, empty": [sys.executable, "-c", "pass"],
    "import sca_hf": [sys.executable, "-c", "import sca_hf"],
    "sca-hf": PROGRAM,
    "sca-hf --version": [*PROGRAM, "--version"],
    "sca-hf --help": [*PROGRAM, "--help"],
    "sca-hf caption --help": [*PROGRAM, "caption", "--help"],
    "sca-hf predict --help": [*PROGRAM, "predict", "--help"],
    "sca-hf unknown": [*PROGRAM, "unknown"],
    "import torch": [sys.executable, "-c", "import torch"],
    "from sca_hf import ScaProcessor": [sys.executable, "-c", "from sca_hf import ScaProcessor"],
}
# Nothing of these needs to be there: what is missing should be told as quickly.
FIRST_LINES = {
    "caption": ["caption", "missing.png"],
    "anything": ["anything", "missing"],
    "find": ["find", "missing.png", "a cat"],
    "video": ["video", "missing.mp4", "--box", "1,2,3,4"],
    "demo": ["demo", "--port", "0"],
    "serve": ["serve", "--port", "0"],
    "train": ["train", "finetune_voc", "--dry-run"],
    "self-train": ["self-train", "propose", "missing", "--output", "proposals"],
    "data": ["data", "check", "scenes:split=test,count=200"],
    "estimate": ["estimate", "finetune_voc"],
    "predict": ["predict", "--data", "scenes:split=test,count=3", "--output", "predictions.jsonl"],
    "evaluate": ["evaluate", "missing.jsonl"],
    "compare": ["compare", "missing.jsonl", "missing.jsonl"],
    "report": ["report", "missing.jsonl", "--output", "report"],
    "info": ["info"],
    "convert": ["convert", "missing", "converted"],
    "publish": ["publish", "missing", "me/missing"],
    "scene": ["scene", "missing.txt"],
}


def seconds_to_first_line(arguments: list[str], folder: str) -> tuple[float, str]:
    """Returns the CPU time that a command takes before its first line, on stdout or stderr, and the line (Linux)."""
    command = [*PROGRAM, *arguments]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    sources = {**os.environ, "PYTHONPATH": str(Path(sca_hf.__file__).parents[1])}
    with subprocess.Popen(command, cwd=folder, env=sources, **told) as process:
        line = process.stdout.readline() if process.stdout else ""
        spent = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        process.kill()
    return (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK"), line


def cpu_seconds(command: list[str], times: int) -> float:
    """Returns the smallest CPU time of several runs; the first, which may write byte code, is not counted."""
    spent = []
    for _ in range(times + 1):
        before = os.times()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        after = os.times()
        spent.append(sum(after[2:4]) - sum(before[2:4]))
    return min(spent[1:])


def main() -> None:
    """Prints one line per call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3, help="runs of each call; the fastest counts (%(default)s)")
    options = parser.parse_args()
    for name, command in CALLS.items():
        print(f"{cpu_seconds(command, options.times):7.2f} s  {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in FIRST_LINES.items():
            seconds, line = seconds_to_first_line(arguments, folder)
            print(f"{seconds:7.2f} s  sca-hf {name}, to its first line: {line.strip()[:70]}", flush=True)


if __name__ == "__main__":
    main()
