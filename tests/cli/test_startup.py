"""How the command line starts and ends: it imports nothing heavy before it needs it, and Ctrl-C ends it anywhere."""

import os
import re
import signal
import subprocess
import sys

import pytest

import sca_hf
from benchmarks.startup import FIRST_LINES, seconds_to_first_line
from sca_hf.cli import COMMANDS, main


HEAVY = {"torch", "transformers", "datasets", "huggingface_hub", "gradio", "fastapi", "pydantic"}
RUN = f"""
import sys
from sca_hf.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("code", code, "imported", *sorted({HEAVY!r} & set(sys.modules)))
"""
# Sends Ctrl-C to the process at the moment when the module named in INTERRUPTED is looked for.
INTERRUPTER = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
"""


def run_light(*arguments):
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    return "\n".join(shown), done.stderr, last


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(command):
    shown, _, last = run_light(command, "--help")
    assert last == "code 0 imported" and f"usage: sca-hf {command} " in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 0, "usage: sca-hf [-h] [--version] COMMAND"),
        (["--help"], 0, "render a picture"),
        (["--version"], 0, f"sca-hf {sca_hf.__version__} (torch "),
        (["paint"], 2, "invalid choice: 'paint' (choose from"),
        (["caption"], 2, "the following arguments are required: IMAGE"),
        (["caption", "x.png", "--num-beams", "0"], 2, "expected a whole number of at least 1"),
        (["caption", "missing.png"], 2, "missing.png is not there"),
        (["anything", "missing.png"], 2, "missing.png is not an image, a folder or a data spec"),
        (["video", "missing.mp4", "--box", "1,2,3,4"], 2, "there is no clip missing.mp4"),
        (["evaluate", "missing.jsonl"], 2, "missing.jsonl: No such file"),
        (["compare", "missing.jsonl", "missing.jsonl"], 2, "missing.jsonl: No such file"),
        (["data", "check", "scenes:split=test,count=3"], 0, "images      3"),
        (["serve", "--host", "0.0.0.0"], 2, "set a token"),
        (["demo", "--token", "short"], 2, "a token must have 8 or more"),
    ],
)
def test_what_needs_no_model_imports_nothing_heavy(arguments, code, said):
    shown, wrong, last = run_light(*arguments)
    assert last == f"code {code} imported" and said in shown + wrong


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads CPU times from /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_line_takes_less_than_a_second_of_cpu(command, tmp_path):
    seconds, line = seconds_to_first_line(FIRST_LINES[command], str(tmp_path))
    assert seconds < 1 and re.match(rf"sca-hf {command}: \w+", line)


def test_one_command_does_not_import_the_others():
    code = "import sys; from sca_hf.cli import parse; parse(['info', 'x']); print({*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(re.findall(r"sca_hf\.cli\.\w+", done.stdout)) == {"sca_hf.cli.info", "sca_hf.cli.parsing"}


def test_the_program_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sca_hf", "--help"], capture_output=True, text=True, check=True)
    assert all(re.search(rf"^    {command}\s", done.stdout, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    "moment",
    [
        "argparse",
        "sca_hf.cli",
        "sca_hf.cli.caption",
        "torch",
        "torch.nn",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "sca_hf.modeling.mixer_sca",
        "transformers.models.sam.modeling_sam",
    ],
)
def test_ctrl_c_during_any_import_ends_in_one_line(moment, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTER)
    (tmp_path / "x.png").write_bytes(b"")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "sca_hf", "caption", "--quiet", str(tmp_path / "x.png")],
        env={**os.environ, "PYTHONPATH": paths, "INTERRUPTED": moment},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "sca-hf: interrupted\n")


def test_ctrl_c_during_the_work_ends_in_one_line(tmp_path):
    """A named pipe as the file of regions keeps the command waiting where it works."""
    os.mkfifo(tmp_path / "regions.json")
    (tmp_path / "x.png").write_bytes(b"")
    image = str(tmp_path / "x.png")
    command = [sys.executable, "-m", "sca_hf", "caption", image, "--regions", str(tmp_path / "regions.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with open(tmp_path / "regions.json", "w"):  # opens once the other side does
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "sca-hf: interrupted\n")


def test_an_interrupted_call_returns_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sca_hf.cli.scene.run", interrupted)
    assert main(["scene", "x.png"]) == 130
    assert capsys.readouterr().err == "sca-hf: interrupted\n"
