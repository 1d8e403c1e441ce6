"""Save tiny models with the transformers of this process, and what they say of an example.

    PYTHONPATH=src python tests/versions/save_models.py FOLDER

FOLDER gets a whole and a mixer-only repository of each family, and `said.json`.
"""

import json
import sys
from pathlib import Path


sys.path.extend([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])

from remote_code_check import describe

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.testing import tiny_model, tiny_tokenizer
from tests.modeling.tiny_segmenters import tiny_model_of


# One with learned positions, and one whose positions are a buffer that no checkpoint holds and whose head is tied.
FAMILIES = ("gpt2", "llama3")
# Segmenters beside SAM; EdgeTAM needs timm, and with it torchvision.
SEGMENTERS = ("sam_hq", "sam2", "sam2_video", "sam3_tracker", "sam3_tracker_video")


def main(folder: Path) -> None:
    """Save, and describe what was saved before it was."""
    said = {}
    for family in (*FAMILIES, *SEGMENTERS):
        model = tiny_model(family) if family in FAMILIES else tiny_model_of(family)
        processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
        expected = describe(model, processor)
        model.save_pretrained(folder / f"{family}-whole")
        # The mixer names the whole repository for its base models.
        loaded = ScaForConditionalGeneration.from_pretrained(folder / f"{family}-whole")
        loaded.save_pretrained(folder / f"{family}-mixer", include_base_models=False)
        for kind in ("whole", "mixer"):
            processor.save_pretrained(folder / f"{family}-{kind}")
            said[f"{family}-{kind}"] = {name: expected[name].tolist() for name in ("ids", "captions")}
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
