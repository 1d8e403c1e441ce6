import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import sca_hf
from sca_hf.environment import install_command, require_extra


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "program",
    ["from sca_hf import ScaProcessor", "import sca_hf.captioning", "from sca_hf.__main__ import main; main()"],
)
def test_a_torchvision_of_another_torch_is_named_with_the_fix(program, tmp_path):
    (tmp_path / "torchvision").mkdir()
    broken = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    info = tmp_path / "torchvision-99.0.dist-info"
    info.mkdir()
    (tmp_path / "x.png").write_bytes(b"")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 99.0\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(sca_hf.__file__).parents[1])])
    command = [sys.executable, "-c", program, "caption", str(tmp_path / "x.png")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    told = done.stderr.splitlines()[-1]
    assert "rror: torchvision 99.0 does not work with torch" in told and "pip uninstall" in told


@pytest.mark.parametrize("extra", ["demo", "serve", "eval", "java", "spice", "spacy", "ray"])
def test_what_is_missing_is_installed_by_its_own_name(extra):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    command = install_command(extra)
    names = {re.match(r"[\w-]+", requirement).group() for requirement in declared}
    assert command.startswith("pip install ") and names <= set(re.findall(r'"([\w-]+)', command))


def test_run_from_its_sources_the_folder_of_these_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("sca_hf.environment.requires", missing)
    assert install_command("serve") == f'pip install "{ROOT}[serve]"'


def test_no_hint_names_this_package_as_if_an_index_had_it():
    listed = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.*")]
    found = [path for path in listed if path.is_file() and re.search(r"sca-hf\[", path.read_text("utf-8", "replace"))]
    assert not found


def test_what_is_not_there_is_told_with_the_command():
    require_extra("serve", "The server", "json")
    with pytest.raises(ImportError, match='The server needs no_such_package: pip install "fastapi'):
        require_extra("serve", "The server", "json", "no_such_package")
