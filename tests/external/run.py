"""Run the library's own model and processor tests against our classes.

    python tests/external/run.py [--source FILE_OR_FOLDER] [--report FILE.md] [pytest arguments]

The tests of transformers are in its source distribution, not in what pip installs: the one of the installed version is
fetched from the package index into a temporary folder (`--source` takes an archive or folder at hand). Our side, what
the tests ask of a model and of a processor, is in `*_suite.py` beside this file. Nothing of the library's is kept.
Exit status 0: no failure. Every skipped test is listed with its reason.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import transformers


HERE = Path(__file__).parent
# What the library's test files import, and its source distribution leaves out.
STUBS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {'return_dict': False}\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs):\n    return url\n",
}


def fetch_source(folder: Path) -> Path:
    """Download the source distribution of the installed transformers."""
    version = transformers.__version__
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder), f"transformers=={version}"]
    subprocess.run(command, check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def unpack(source: Path, folder: Path) -> Path:
    """The folder that holds `tests`, of an archive or of an unpacked one."""
    if source.is_dir():
        return source
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("transformers-*/"))


def prepare(source: Path, folder: Path) -> None:
    """Lay out a package `tests` with the library's files, stubs for what they miss, and our suites."""
    (folder / "tests" / "sca").mkdir(parents=True)
    for file in (source / "tests").glob("*.py"):
        shutil.copy(file, folder / "tests")
    for name, text in STUBS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for suite in HERE.glob("*_suite.py"):
        shutil.copy(suite, folder / "tests" / "sca" / f"test_{suite.name}")
    for package in [folder / "tests", *(path for path in (folder / "tests").iterdir() if path.is_dir())]:
        (package / "__init__.py").touch()


def run_tests(folder: Path, arguments: list[str]) -> tuple[int, Path]:
    """Run pytest on our suites in `folder`; returns its status and its report."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/sca"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run([*command, *arguments], cwd=folder, env=environment).returncode, report


def tabulate(report: Path) -> str:
    """Counts of each suite, then every skipped test with its reason, as Markdown."""
    counts: dict[str, Counter] = {}
    skipped: dict[tuple[str, str], list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        suite = case.get("classname", "").split(".")[-1]
        result = next((kind for kind in ("skipped", "failure", "error") if case.find(kind) is not None), "passed")
        counts.setdefault(suite, Counter())[result] += 1
        if result == "skipped":
            reason = " ".join(case.find(result).get("message", "").split())
            skipped.setdefault((case.get("name", ""), reason), []).append(suite)
    lines = [f"# The tests of transformers {transformers.__version__} against our classes", ""]
    lines += ["Made by `python tests/external/run.py --report FILE` (`make test-external` runs the same).", ""]
    lines += ["| suite | passed | skipped | failed |", "|---|---|---|---|"]
    for suite, count in counts.items():
        lines.append(f"| {suite} | {count['passed']} | {count['skipped']} | {count['failure'] + count['error']} |")
    lines += ["", "| skipped | in | because |", "|---|---|---|"]
    for (name, reason), suites in sorted(skipped.items()):
        lines.append(f"| {name} | {', '.join(suites)} | {reason.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, help="source distribution of transformers, archive or unpacked")
    parser.add_argument("--report", type=Path, help="also write the table here")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="transformers-tests-") as name:
        folder = Path(name)
        source = unpack(options.source or fetch_source(folder), folder)
        prepare(source, folder / "run")
        status, report = run_tests(folder / "run", arguments)
        if not report.exists():
            return status or 1
        table = tabulate(report)
    print(table)
    if options.report:
        options.report.write_text(table)
    return status


if __name__ == "__main__":
    sys.exit(main())
