"""Segment and Caption Anything for the Hugging Face ecosystem: a mask and a caption for every prompted region."""

from .environment import explain_broken_torchvision


try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageTextToText,
        AutoModelForMaskGeneration,
        AutoProcessor,
    )
except (ImportError, RuntimeError):
    explain_broken_torchvision()
    raise

from .model_names import bundled_model, region_captioning_pipeline
from .modeling.configuration_sca import ScaConfig, ScaMixerConfig
from .modeling.mixer_sca import ScaTextFeatureMixer
from .modeling.modeling_sca import ScaForConditionalGeneration
from .modeling.outputs_sca import ScaGenerateOutput, ScaOutput
from .processing.processing_sca import ScaProcessor


__version__ = "0.1.0"

AutoConfig.register(ScaConfig.model_type, ScaConfig)
AutoProcessor.register(ScaConfig, ScaProcessor)
for _auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMaskGeneration):
    _auto.register(ScaConfig, ScaForConditionalGeneration)

__all__ = [
    "ScaConfig",
    "ScaForConditionalGeneration",
    "ScaGenerateOutput",
    "ScaMixerConfig",
    "ScaOutput",
    "ScaProcessor",
    "ScaTextFeatureMixer",
    "bundled_model",
    "region_captioning_pipeline",
]
