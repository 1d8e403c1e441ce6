"""The bundled model is what the card and the package say."""

import filecmp
from pathlib import Path

import pytest

import sca_hf


PACKAGE = Path(sca_hf.__file__).parent
BUNDLED = PACKAGE / "assets" / "sca-tiny"


@pytest.mark.parametrize("copy", sorted(BUNDLED.glob("*.py")), ids=lambda path: path.name)
def test_the_code_in_the_bundle_is_the_code_of_the_package(copy):
    (source,) = [path for folder in ("modeling", "processing") for path in (PACKAGE / folder).glob(copy.name)]
    assert filecmp.cmp(source, copy, shallow=False), f"{copy.name} has changed since: run make assets"


def test_the_bundle_is_small_and_whole():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 12e6
    assert sorted(path.name for path in BUNDLED.glob("*.safetensors")) == ["model.safetensors"]
    assert not list(BUNDLED.glob("*.bin")) + list(BUNDLED.glob("*.pkl"))


def test_the_bundle_loads_in_float32():
    model = sca_hf.ScaForConditionalGeneration.from_pretrained(BUNDLED)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    model.check_tokenizer(sca_hf.ScaProcessor.from_pretrained(BUNDLED).tokenizer)
