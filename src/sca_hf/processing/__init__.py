"""Images, prompts and captions in, records of regions out."""

from .processing_sca import ScaProcessor


__all__ = ["ScaProcessor"]
