"""Segment and Caption Anything for the Hugging Face ecosystem: a mask and a caption for every prompted region."""

from typing import TYPE_CHECKING

from .lazy import lazy_exports, register_with_auto_classes


if TYPE_CHECKING:
    from .modeling.configuration_sca import ScaConfig, ScaMixerConfig
    from .modeling.mixer_sca import ScaTextFeatureMixer
    from .modeling.modeling_sca import ScaForConditionalGeneration
    from .modeling.outputs_sca import ScaGenerateOutput, ScaOutput
    from .processing.processing_sca import ScaProcessor
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "modeling.configuration_sca": ["ScaConfig", "ScaMixerConfig"],
            "modeling.mixer_sca": ["ScaTextFeatureMixer"],
            "modeling.modeling_sca": ["ScaForConditionalGeneration"],
            "modeling.outputs_sca": ["ScaGenerateOutput", "ScaOutput"],
            "processing.processing_sca": ["ScaProcessor"],
        },
    )


__version__ = "0.1.0"

__all__ = [
    "ScaConfig",
    "ScaForConditionalGeneration",
    "ScaGenerateOutput",
    "ScaMixerConfig",
    "ScaOutput",
    "ScaProcessor",
    "ScaTextFeatureMixer",
]

register_with_auto_classes()
