"""What waits until it is used is there when it is used, whichever of the packages comes first."""

import subprocess
import sys

import pytest

import sca_hf
from sca_hf.lazy import lazy_exports


TINY = """
import sca_hf
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMaskGeneration, AutoProcessor
from sca_hf.testing import tiny_config

config = tiny_config()
for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMaskGeneration):
    assert type(auto.from_config(config)) is sca_hf.ScaForConditionalGeneration
config.save_pretrained(sys.argv[1])
assert type(AutoConfig.from_pretrained(sys.argv[1])) is sca_hf.ScaConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
assert PROCESSOR_MAPPING[sca_hf.ScaConfig] is sca_hf.ScaProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from sca_hf.modeling.pipeline_sca import RegionCaptioningPipeline
assert PIPELINE_REGISTRY.check_task("region-captioning")[1]["impl"] is RegionCaptioningPipeline
"""


@pytest.mark.parametrize(
    "first",
    [
        "import sca_hf",
        "import transformers",
        "from transformers import pipeline",
        "import sca_hf; from transformers import pipeline",
        "import sca_hf; from transformers import Trainer",
        "from sca_hf.files import read_json; from transformers import PreTrainedModel, GenerationMixin",
        "from transformers import AutoModel; import sca_hf; import transformers.pipelines",
        "import sca_hf.modeling.pipeline_sca",
        "from transformers import AutoModel, AutoProcessor",
        "from transformers import AutoConfig; import sca_hf; from transformers import AutoProcessor",
        "import sca_hf.modeling.modeling_sca",
        "from sca_hf import ScaProcessor",
        "import sca_hf.modeling.base_models_sca",
        "import sca_hf.processing.prompts_sca",
        "import sca_hf.evaluation.captioners",
    ],
)
def test_the_auto_classes_know_ours_whatever_is_imported_first(first, tmp_path):
    subprocess.run([sys.executable, "-c", f"import sys\n{first}\n{TINY}", str(tmp_path)], check=True)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, sca_hf; print({'torch', 'transformers', 'numpy'} & set(sys.modules), dir(sca_hf))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set() ") and "'ScaForConditionalGeneration'" in done.stdout


def test_all_exported_names_are_there():
    assert all(getattr(sca_hf, name).__name__ == name for name in sca_hf.__all__)
    assert set(sca_hf.__all__) <= set(dir(sca_hf))


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sca_hf' has no attribute 'ScaModel'"):
        sca_hf.ScaModel  # noqa: B018
    get, _ = lazy_exports("sca_hf", {".environment": ["explain_broken_torchvision"]})
    assert get("explain_broken_torchvision").__module__ == "sca_hf.environment"
