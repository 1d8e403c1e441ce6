"""Training on region records, with the library's Trainer or with ours."""

from ..data.pasting import training_augmentation
from .arguments import ScaTrainingArguments
from .collator import RegionCollator
from .draws import DrawnRecords, DrawnStream
from .presets import PRESETS, apply_preset
from .trainer import ScaTrainer


__all__ = [
    "ScaTrainer",
    "ScaTrainingArguments",
    "RegionCollator",
    "DrawnRecords",
    "DrawnStream",
    "training_augmentation",
    "PRESETS",
    "apply_preset",
]
