"""Save with one transformers, load with another: every pair of versions, each in an environment of its own.

    python tests/versions/run.py [--environments DIR] [--versions 5.17.0 5.20.2 5.24.0] [--table docs/versions.md]

An environment is made where it is missing (torch and all): a few minutes and a gigabyte each. Ends with 1 unless every
pair gives equal ids; writes the table either way.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path


ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# The oldest that pyproject.toml allows, one in the middle, the newest.
VERSIONS = ("5.17.0", "5.20.2", "5.24.0")
SHOWN = ("python", "transformers", "huggingface_hub", "torch")


def environment(folder: Path, version: str, index: str | None) -> Path:
    """The Python of an environment with one version of transformers, made where it is missing."""
    python = folder / version / "bin" / "python"
    if not _has(python, version):
        venv.create(folder / version, with_pip=True, clear=True)
        torch = next(line for line in (ROOT / "requirements" / "constraints.txt").open() if line.startswith("torch=="))
        wanted = [torch.strip(), f"transformers=={version}", "pillow", "accelerate"]
        command = [python, "-m", "pip", "install", "-q", *wanted]
        subprocess.run([*command, *(["--extra-index-url", index] if index else [])], check=True)
    return python


def _has(python: Path, version: str) -> bool:
    if not python.exists():
        return False
    program = "from importlib.metadata import version as v; print(v('transformers'), v('torch'))"
    found = subprocess.run([python, "-c", program], capture_output=True, text=True)
    return found.stdout.startswith(version)


def run(python: Path, home: Path, script: str, *arguments: Path | str, path: Path | None = None) -> None:
    """Run one of the two scripts, offline, with a cache of its own."""
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own |= {"PYTHONPATH": str(path)} if path else {}
    subprocess.run([python, HERE / script, *map(str, arguments)], check=True, env=inherited | own)


def versions_of(python: Path) -> list[str]:
    """What an environment has, in the order of `SHOWN`."""
    program = (
        "import platform; from importlib.metadata import version as v; "
        "print(platform.python_version(), v('transformers'), v('huggingface_hub'), v('torch').split('+')[0])"
    )
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def matrix(pythons: dict[str, Path], work: Path) -> dict[tuple[str, str], list[str]]:
    """(saved with, loaded with) -> what each repository gave."""
    for version, python in pythons.items():
        (work / version).mkdir()
        run(python, work / "home" / version, "save_models.py", work / version, path=ROOT / "src")
    found: dict[tuple[str, str], list[str]] = {}
    for version, python in pythons.items():
        result = work / f"loaded-{version}.json"
        run(python, work / "home" / version, "load_models.py", result, *(work / saved for saved in pythons))
        for name, value in json.loads(result.read_text()).items():
            found.setdefault((name.split("/")[0], version), []).append(value)
    return found


def table(found: dict[tuple[str, str], list[str]], pythons: dict[str, Path]) -> str:
    """The page for docs/."""
    names = list(pythons)
    lines = [
        "# Versions",
        "",
        "Models saved with one transformers and loaded with another, in three lines and without this package, each",
        "in an environment of its own: whole and mixer-only repositories over GPT-2 and Llama with SAM, and over",
        "GPT-2 with SAM-HQ, SAM 2 and SAM 3's tracker, image and video models; several images and regions with",
        "prompts of every kind, two beams. *equal*: the ids are those of the process that saved them.",
        "",
        "| saved with | " + " | ".join(f"loaded with {name}" for name in names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for saved in names:
        cells = [sorted(set(found[saved, loaded])) for loaded in names]
        lines.append(f"| {saved} | " + " | ".join("; ".join(cell) for cell in cells) + " |")
    lines += ["", "| " + " | ".join(SHOWN) + " |", "|" + " --- |" * len(SHOWN)]
    lines += ["| " + " | ".join(versions_of(python)) + " |" for python in pythons.values()]
    lines += ["", "Made by `make test-versions`.", ""]
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, default=ROOT / ".versions", help="where they are, or are made")
    parser.add_argument("--versions", nargs="+", default=VERSIONS)
    parser.add_argument("--index", help="another package index to look for torch in")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "versions.md")
    options = parser.parse_args()
    pythons = {version: environment(options.environments, version, options.index) for version in options.versions}
    with tempfile.TemporaryDirectory() as work:
        found = matrix(pythons, Path(work))
    page = table(found, pythons)
    options.table.write_text(page, encoding="utf-8")
    print(page)
    return 0 if all(set(values) == {"equal"} for values in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
