"""The bundled model is unsure of photographs of things it never saw, and not of what it knows."""

import pytest

from experiments.sca_tiny.confidence import measure
from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.model_names import bundled_model


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["box", "point"])
def test_regions_from_elsewhere_are_unsure_and_its_own_are_not(prompt, measured):
    for side, low, high in (("elsewhere", 0.9, 1.0), ("own", 0.0, 0.1)):
        sets = measured[side].values()
        count = sum(found["regions"] for found in sets)
        unsure = sum(found[prompt] * found["regions"] for found in sets) / count
        assert count >= 200 and low <= unsure <= high, (side, unsure)


@pytest.fixture(scope="module")
def measured(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    (folder / "data").symlink_to(shared("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
        model = ScaForConditionalGeneration.from_pretrained(bundled_model("sca-tiny")).eval()
        return measure(model, ScaProcessor.from_pretrained(bundled_model("sca-tiny")))
