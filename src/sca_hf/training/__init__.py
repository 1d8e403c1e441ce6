"""Training on region records, with the library's Trainer or with ours."""

from ..data.pasting import training_augmentation
from .arguments import ScaTrainingArguments
from .collator import RegionCollator
from .details import teach_details
from .draws import DrawnRecords, DrawnStream
from .image_encoder import add_detail_encoder, set_image_size, sharpen
from .presets import PRESETS, apply_preset
from .trainer import ScaTrainer


__all__ = [
    "ScaTrainer",
    "ScaTrainingArguments",
    "RegionCollator",
    "DrawnRecords",
    "DrawnStream",
    "training_augmentation",
    "add_detail_encoder",
    "set_image_size",
    "sharpen",
    "teach_details",
    "PRESETS",
    "apply_preset",
]
