"""A saved repository loads in three lines where this package is not installed, and gives the same results."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from remote_code_check import describe

import sca_hf
from sca_hf import ScaForConditionalGeneration, ScaProcessor


CHECK = Path(__file__).with_name("remote_code_check.py")
BUNDLED = Path(sca_hf.__file__).parent / "assets" / "sca-tiny"
OLDEST = "5.17.0"


@pytest.fixture
def whole(model, processor, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def mixer_only(whole, processor, tmp_path):
    loaded = ScaForConditionalGeneration.from_pretrained(whole)
    loaded.save_pretrained(tmp_path / "mixer", include_base_models=False)
    processor.save_pretrained(tmp_path / "mixer")
    return tmp_path / "mixer"


@pytest.fixture
def bundled():
    if not BUNDLED.is_dir():
        pytest.skip("the bundled model is not in assets/ yet")
    return BUNDLED


def run_without_package(repository, tmp_path, python=sys.executable, path=None):
    """Results of `remote_code_check.py` in a fresh process, elsewhere, with a cache of code of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    results = tmp_path / "results.npz"
    command = [str(python), str(CHECK), str(repository), str(results)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(results))


def assert_same(found, repository):
    expected = describe(
        ScaForConditionalGeneration.from_pretrained(repository), ScaProcessor.from_pretrained(repository)
    )
    assert str(found["module"]).startswith("transformers_modules.")
    assert np.array_equal(found["ids"], expected["ids"])
    assert len(set(map(str, expected["captions"]))) > 1
    assert list(found["captions"]) == list(found["pipeline_captions"]) == list(expected["captions"])
    assert list(found["everything"]) == list(expected["everything"])
    np.testing.assert_allclose(found["masks"], expected["masks"], atol=1e-5)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)


@pytest.mark.parametrize("kind", ["whole", "mixer_only", "bundled"])
def test_three_lines_without_the_package_give_the_same(kind, request, tmp_path):
    repository = request.getfixturevalue(kind)
    assert_same(run_without_package(repository, tmp_path), repository)


@pytest.fixture(scope="session")
def oldest(tmp_path_factory):
    """A Python and a search path with the oldest supported transformers, beside the torch of this environment."""
    if python := os.environ.get("SCA_OLDEST_PYTHON"):
        return python, None
    folder = tmp_path_factory.mktemp("oldest")
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), f"transformers=={OLDEST}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"transformers {OLDEST} cannot be installed here: {done.stderr[-300:]}")
    return sys.executable, folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "mixer_only", "bundled"])
def test_the_oldest_transformers_gives_the_same(kind, request, tmp_path, oldest):
    repository = request.getfixturevalue(kind)
    found = run_without_package(repository, tmp_path, *oldest)
    assert str(found["version"]) == OLDEST
    assert_same(found, repository)


TWINS = """
import pathlib, shutil, sys
sys.modules["sca_hf"] = None
from transformers import AutoConfig, AutoModel
first = pathlib.Path(sys.argv[1])
names = sorted(path.name for path in first.glob("*.py"))
for name in ["", *names]:
    folder = first.parents[1] / f"of_{name}" / first.name
    shutil.copytree(first, folder)
    if name:
        with open(folder / name, "a") as file:
            file.write("FOLDER = 1")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_config(config, trust_remote_code=True)
    package = type(model).__module__.rpartition(".")[0]
    own = [key for key, module in sys.modules.items() if key.startswith(f"{package}.") and hasattr(module, "FOLDER")]
    files = {file.name for file in (pathlib.Path(sys.modules[type(model).__module__].__file__).parent).glob("*.py")}
    # The pipeline is imported when a model is saved.
    expected = [f"{package}.{name[:-3]}"] if name in files - {"pipeline_sca.py"} else []
    assert own == expected, (name, own, expected)
    print(name, *own)
"""


def test_folders_of_one_name_run_their_own_code(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", TWINS, str(tmp_path / "run" / "model")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mixer_sca.py transformers_modules.model." in done.stdout
