"""Training on region records, with the library's Trainer or with ours."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports


if TYPE_CHECKING:
    from ..data.pasting import training_augmentation
    from .arguments import PRESETS, ScaTrainingArguments
    from .asked_tasks import add_languages, add_lengths
    from .collator import RegionCollator
    from .confidence import fit_confidence
    from .detail_pretraining import pretrain_detail_encoder
    from .draws import DrawnStream, SeededDataset
    from .image_size import add_detail_encoder, add_second_look, increase_input_resolution, set_image_size
    from .presets import apply_preset
    from .trainer import ScaTrainer
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "..data.pasting": ["training_augmentation"],
            ".arguments": ["PRESETS", "ScaTrainingArguments"],
            ".asked_tasks": ["add_languages", "add_lengths"],
            ".collator": ["RegionCollator"],
            ".confidence": ["fit_confidence"],
            ".detail_pretraining": ["pretrain_detail_encoder"],
            ".draws": ["DrawnStream", "SeededDataset"],
            ".image_size": ["add_detail_encoder", "add_second_look", "increase_input_resolution", "set_image_size"],
            ".presets": ["apply_preset"],
            ".trainer": ["ScaTrainer"],
        },
    )


__all__ = [
    "ScaTrainer",
    "ScaTrainingArguments",
    "RegionCollator",
    "SeededDataset",
    "DrawnStream",
    "training_augmentation",
    "add_detail_encoder",
    "add_second_look",
    "add_lengths",
    "add_languages",
    "set_image_size",
    "increase_input_resolution",
    "pretrain_detail_encoder",
    "PRESETS",
    "apply_preset",
    "fit_confidence",
]
