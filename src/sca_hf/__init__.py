"""Segment and Caption Anything for the Hugging Face ecosystem: a mask and a caption for every prompted region."""

from .lazy import lazy_exports, register_with_auto_classes


TYPE_CHECKING = False  # as in .lazy
if TYPE_CHECKING:
    from .model_names import bundled_model, region_captioning_pipeline
    from .modeling.configuration_sca import ScaConfig, ScaMixerConfig
    from .modeling.mixer_sca import ScaTextFeatureMixer
    from .modeling.modeling_sca import ScaForConditionalGeneration
    from .modeling.outputs_sca import ScaGenerateOutput, ScaOutput
    from .processing.processing_sca import ScaProcessor
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            ".model_names": ["bundled_model", "region_captioning_pipeline"],
            ".modeling.configuration_sca": ["ScaConfig", "ScaMixerConfig"],
            ".modeling.mixer_sca": ["ScaTextFeatureMixer"],
            ".modeling.modeling_sca": ["ScaForConditionalGeneration"],
            ".modeling.outputs_sca": ["ScaGenerateOutput", "ScaOutput"],
            ".processing.processing_sca": ["ScaProcessor"],
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
    "bundled_model",
    "region_captioning_pipeline",
]

register_with_auto_classes()
