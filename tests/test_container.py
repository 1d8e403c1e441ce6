"""The container file: what it copies suffices to build, and what it runs is a command of ours."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sca_hf.cli import parse


ROOT = Path(__file__).parents[1]
FILE = ROOT / "Dockerfile"


@pytest.fixture(scope="module")
def steps():
    """The instructions of the file, as (name, arguments)."""
    if not FILE.exists():
        pytest.skip("needs a checkout")
    text = FILE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def only(steps, name):
    (found,) = (arguments for step, arguments in steps if step == name)
    return found


def test_what_is_copied_is_there_is_not_ignored_and_suffices_for_a_wheel(steps, tmp_path):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for step, arguments in steps:
        if step == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                assert f"!{source}" in ignored
                to = tmp_path / (target if target != "./" else source)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, to, **({"symlinks": True} if copy is shutil.copytree else {}))
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and list((tmp_path / "dist").glob("*.whl")), done.stderr


def test_the_package_is_installed_with_the_extra_of_the_server_for_a_python_that_it_takes(steps):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'pip install .*"\.\[(.*?)\]"', only(steps, "RUN"))
    assert extras in project["optional-dependencies"] and extras == "serve"
    (minor,) = re.fullmatch(r"python:3\.(\d+)-slim", only(steps, "FROM")).groups()
    assert int(minor) >= int(project["requires-python"].removeprefix(">=3."))


def test_the_command_is_one_of_ours_and_wants_a_token(steps, monkeypatch):
    from sca_hf.cli.serve import server_arguments

    program, *arguments = json.loads(only(steps, "ENTRYPOINT"))
    assert program == "sca-hf" and only(steps, "STOPSIGNAL") == "SIGINT"
    options = parse([*arguments, "--model", "owner/name"])
    assert options.port == int(only(steps, "EXPOSE"))
    monkeypatch.delenv("SCA_TOKEN", raising=False)
    with pytest.raises(ValueError, match="set a token with SCA_TOKEN"):
        server_arguments(options)
    monkeypatch.setenv("SCA_TOKEN", "0123456789abcdef")
    assert server_arguments(options)["token"] == "0123456789abcdef"


def test_the_health_check_asks_for_what_the_server_answers_without_a_token(steps):
    arguments = only(steps, "HEALTHCHECK")
    python, flag, code = json.loads(arguments[arguments.index("[") :])
    ast.parse(code)
    port = only(steps, "EXPOSE")
    assert (python, flag) == ("python", "-c") and f"http://127.0.0.1:{port}/health" in code


def test_it_does_not_run_as_root(steps):
    names = [step for step, _ in steps]
    assert only(steps, "USER") == "sca" and "useradd --create-home sca" in only(steps, "RUN")
    assert names.index("USER") < names.index("ENTRYPOINT")
