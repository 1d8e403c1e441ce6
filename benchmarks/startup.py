"""CPU time (user and system) of what should come at once: `python -m benchmarks.startup`."""

import argparse
import os
import subprocess
import sys


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


if __name__ == "__main__":
    main()
