"""What the README shows is what happens: its Python runs and prints what it says, its commands exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sca_hf.cli import parse


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(<!-- needs (?:the Hub|data) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
BLOCKS = [(bool(hub), language, text) for hub, language, text in BLOCK.findall(README)]
PROGRAMS = [index for index, (hub, language, _) in enumerate(BLOCKS) if language == "python" and not hub]
SHELL = [line for _, language, text in BLOCKS if language == "sh" for line in text.splitlines()]
COMMANDS = [line.split("#")[0].strip() for line in SHELL if line]


@pytest.mark.parametrize("index", PROGRAMS)
def test_python_prints_what_is_shown(index, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[index][2]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "[transformers]" not in done.stderr, "the library warns of something"
    following = BLOCKS[index + 1] if index + 1 < len(BLOCKS) else None
    if following is not None and following[1] == "text":
        assert NUMBER.split(done.stdout) == NUMBER.split(following[2])
        # Another processor may round a score or a pixel the other way.
        for printed, shown in zip(NUMBER.findall(done.stdout), NUMBER.findall(following[2]), strict=True):
            assert float(printed) == pytest.approx(float(shown), rel=0.02, abs=0.02 if "." in shown else 1)


def test_python_that_needs_the_hub_compiles():
    held_back = [text for hub, _, text in BLOCKS if hub]
    assert held_back
    for text in held_back:
        compile(text, "README.md", "exec")


def test_the_training_program_is_the_example():
    program = (ROOT / "examples" / "finetune_stock_trainer.py").read_text()
    assert program.split('"""\n\n', 1)[1] in [text for held_back, _, text in BLOCKS if held_back]


def test_outputs_are_shown_and_belong_to_programs():
    shown = [index for index, (_, language, _) in enumerate(BLOCKS) if language == "text"]
    assert shown and all(index - 1 in PROGRAMS for index in shown)


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_the_commands_of_every_page_are_understood(page):
    for text in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
        for line in text.replace("\\\n", " ").splitlines():
            command = re.search(r"(?:^|\s)(?:sca-hf|-m sca_hf) ([^|<>#]+)", line)
            if command is not None:
                parse(shlex.split(command[1]))


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make")])
def test_make_targets_exist(command):
    targets = command.split()[1:]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_pictures_and_files_exist():
    named = re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(r"`((?:src|recipes|docs|examples)/[\w./-]+)`", README)
    assert named and all((ROOT / path).exists() for path in named)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 240
