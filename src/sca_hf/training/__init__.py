"""Training on region records, with the library's Trainer or with ours."""

from ..data.pasting import training_augmentation
from .arguments import PRESETS, ScaTrainingArguments
from .collator import RegionCollator
from .detail_pretraining import pretrain_detail_encoder
from .draws import DrawnStream, SeededDataset
from .image_size import add_detail_encoder, increase_input_resolution, set_image_size
from .presets import apply_preset
from .trainer import ScaTrainer


__all__ = [
    "ScaTrainer",
    "ScaTrainingArguments",
    "RegionCollator",
    "SeededDataset",
    "DrawnStream",
    "training_augmentation",
    "add_detail_encoder",
    "set_image_size",
    "increase_input_resolution",
    "pretrain_detail_encoder",
    "PRESETS",
    "apply_preset",
]
