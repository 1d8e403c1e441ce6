"""The bundled model is what the card and the package say."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sca_hf
from sca_hf.model_names import BUNDLED_MODELS, bundled_model


PACKAGE = Path(sca_hf.__file__).parent
BUNDLED = bundled_model()


@pytest.mark.parametrize(
    "link", sorted(BUNDLED.parent.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_the_code_in_the_bundle_is_a_link_to_the_code_of_the_package(link):
    assert link.is_symlink() and not link.readlink().is_absolute(), f"{link.name} is a file of its own: link it"
    assert link.resolve(strict=True).parent.name in ("modeling", "processing") and link.resolve().name == link.name


def test_the_bundle_has_all_the_code():
    code = {path.name for folder in ("modeling", "processing") for path in (PACKAGE / folder).glob("*_sca.py")}
    for name in BUNDLED_MODELS:
        assert {path.name for path in bundled_model(name).glob("*.py")} == code


def test_a_saved_model_holds_files_and_not_links(tmp_path):
    sca_hf.ScaForConditionalGeneration.from_pretrained(BUNDLED).save_pretrained(tmp_path / "saved")
    sca_hf.ScaProcessor.from_pretrained(BUNDLED).save_pretrained(tmp_path / "saved")
    code = list((tmp_path / "saved").glob("*.py"))
    assert {path.name for path in code} == {path.name for path in BUNDLED.glob("*.py")}
    assert not any(path.is_symlink() for path in code)


@pytest.mark.slow
def test_the_wheel_holds_files_of_full_size(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    done = subprocess.run([*build, str(PACKAGE.parents[1])], capture_output=True, text=True, check=False)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("hatchling is not installed")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for link in BUNDLED.parent.glob("*/*.py"):
            assert archive.read(f"sca_hf/assets/{link.parent.name}/{link.name}") == link.read_bytes()


def test_the_bundle_is_small_and_whole():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 25e6
    assert sorted(path.name for path in BUNDLED.glob("*.safetensors")) == ["model.safetensors"]
    assert not list(BUNDLED.glob("*.bin")) + list(BUNDLED.glob("*.pkl"))


def test_the_bundle_loads_in_float32():
    model = sca_hf.ScaForConditionalGeneration.from_pretrained(BUNDLED)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    model.check_tokenizer(sca_hf.ScaProcessor.from_pretrained(BUNDLED).tokenizer)
