"""What can be said about a training run, beside what the library's Trainer knows."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from ..data.prompts import DRAWN_KINDS
from ..modeling.losses_sca import MASK_LOSSES


MASK_DECODER, SECOND_LOOK = "sam.mask_decoder", "second_look"
# What is SCA's own, and takes part in every preset; most models have no detail encoder.
_OWN = ("mixer", "detail_encoder")


@dataclass(frozen=True)
class Preset:
    """Dotted names of the modules to train; `with_adapters` adds LoRA layers to the language model."""

    trained: tuple[str, ...]
    with_adapters: bool = False

    @property
    def trains_base_models(self) -> bool:
        """Whether weights of SAM or the language model change."""
        return any(name not in (*_OWN, SECOND_LOOK) for name in self.trained)

    @property
    def trains_masks(self) -> bool:
        """Whether the mask loss has something to train."""
        return any(name in ("sam", MASK_DECODER, SECOND_LOOK) for name in self.trained)


PRESETS = {
    # As published: SAM and the language model stay as they are.
    "mixer": Preset(_OWN),
    # A large language model that must learn other words.
    "mixer+lora": Preset(_OWN, with_adapters=True),
    # A small language model.
    "mixer+lm": Preset((*_OWN, "language_model")),
    # Masks of another kind than SAM's; needs masks in the records.
    "mixer+mask_decoder": Preset((*_OWN, MASK_DECODER)),
    # The net that draws masks again, alone; needs masks in the records.
    "second_look": Preset((SECOND_LOOK,)),
    # Small models: SAM's encoder runs backwards too.
    "all": Preset((*_OWN, "sam", "language_model")),
}
FROZEN_DTYPES = (None, "bfloat16", "float16")
QUANTIZATIONS = (None, "bitsandbytes-4bit", "bitsandbytes-8bit", "torchao-int8")
SAVE_FORMS = (None, "mixer", "whole")


@dataclass
class ScaTrainingArguments(TrainingArguments):
    """The library's arguments, with the published defaults where those differ, and what [`ScaTrainer`] adds.

    Published: AdamW, learning rate 1e-4 for 8 images of 16 regions (scaled with the number of images), weight decay
    1e-4, cosine schedule, 200 warm-up steps. Label smoothing is the model's own, in its configuration.

    Args:
        restore_callback_states_from_checkpoint: True has early stopping count on where a run resumes.
        logging_nan_inf_filter: False shows a loss that is not a number, and waits for no device.
        preset: What to train, one of `PRESETS`.
        module_learning_rates: Learning rates by dotted module name, `{"language_model": 1e-6}`, in place of those of
            the preset; 0 freezes a module that the preset trains.
        mask_loss_weight: The weight of the mask loss where the mask decoder is trained. None takes that of the model's
            configuration.
        mask_loss_type: "sam", or "region" for photographs and small segmenters, see `mask_losses`. None takes that of
            the model's configuration.
        agreement_weight: The weight of the listener in the loss, see `agreement_loss`: a true caption should fit its
            own region better than the others of the picture that are in the batch. 0 leaves it out.
        frozen_dtype: The precision in which the frozen image encoder and language model are held.
        lora_rank: The rank of the adapters of `mixer+lora`.
        lora_alpha: The adapters' scale is `lora_alpha / lora_rank`.
        lora_target_modules: The layers of the language model to adapt. None: those usual for its family.
        quantize_language_model: How a frozen language model is held in 4 or 8 bits, one of `QUANTIZATIONS`.
        prompt_probabilities: How often a region is prompted by its box, a point, ... None: as [`RegionCollator`].
        regions_per_image: How many regions are drawn per image and step. None takes all.
        box_jitter: The standard deviation of each edge of a jittered box, as a fraction of the box's side.
        task: "recognition" or "caption" for all records. None: each record's own.
        augmentation: The augmentation of images and regions, such as "lsj-0.1-2.0", see
            `sca_hf.data.pasting.training_augmentation`.
        detail_steps: How many steps first train the model's detail encoder alone on the regions' names, see
            `sca_hf.training.detail_pretraining`.
        embedding_cache: The folder where embeddings of images are kept, so that the encoder runs once per image.
        eval_generate: Whether evaluation also generates captions and scores them.
        eval_prompt: The kind of prompt in evaluation. What is random about it (a jittered box, points) is drawn by the
            image's id, the same at every evaluation.
        max_eval_samples: How many images, from the first on, evaluation takes. None takes all.
        sample_sheet: How many regions the picture shows that each evaluation draws; 0 draws none.
        save_form: "mixer" or "whole" checkpoints. None: the mixer alone where nothing else is trained and the model's
            SAM and language model come from folders or repositories that can be named; whole from the bundled
            `sca-tiny`, which is small.
        allow_changed_resume: Resume from a checkpoint of a run with other arguments, data or frozen weights.

    With `load_best_model_at_end` and no `metric_for_best_model`, the best model is the one with the lowest loss or,
    where all references of the evaluation set are class names, the one with the highest `naming_accuracy`.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "module_learning_rates",
        "prompt_probabilities",
        "augmentation",
    ]

    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    lr_scheduler_type: str = "cosine"
    remove_unused_columns: bool = False
    restore_callback_states_from_checkpoint: bool = True
    logging_nan_inf_filter: bool = False

    preset: str = "mixer"
    module_learning_rates: dict[str, float] | str | None = None
    mask_loss_weight: float | None = None
    mask_loss_type: str | None = None
    agreement_weight: float = 0.0
    frozen_dtype: str | None = None
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_target_modules: list[str] | None = None
    quantize_language_model: str | None = None

    prompt_probabilities: dict[str, float] | str | None = None
    regions_per_image: int | None = 16
    box_jitter: float = 0.1
    task: str | None = None
    augmentation: dict[str, Any] | str | None = None
    detail_steps: int = 0
    embedding_cache: str | None = None

    eval_generate: bool = True
    eval_prompt: str = "box"
    max_eval_samples: int | None = None
    sample_sheet: int = 8
    save_form: str | None = None
    allow_changed_resume: bool = False

    def __post_init__(self) -> None:
        # Without a name the Trainer takes the labels of points for labels to predict, and reports no loss.
        if self.label_names is None:
            self.label_names = ["labels"]
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if (several or self.bf16) and not torch.accelerator.is_available():
            # Unless it is told so, the library takes each of several processes on CPUs for a run of its own, and
            # refuses bf16.
            self.use_cpu = True
        # The library puts the loss in its place. A schedule that follows the metric keeps that.
        unsaid = self.metric_for_best_model is None and self.greater_is_better is None
        plateau = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) == "reduce_lr_on_plateau"
        self.default_best_metric = self.load_best_model_at_end and unsaid and not plateau
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            # A streamed set would be read by one process, which cannot cut up batches that differ in size.
            self.accelerator_config.dispatch_batches = False
        _check_choice("preset", self.preset, PRESETS)
        _check_choice("mask_loss_type", self.mask_loss_type, (None, *MASK_LOSSES))
        _check_choice("frozen_dtype", self.frozen_dtype, FROZEN_DTYPES)
        _check_choice("quantize_language_model", self.quantize_language_model, QUANTIZATIONS)
        _check_choice("save_form", self.save_form, SAVE_FORMS)
        _check_choice("eval_prompt", self.eval_prompt, DRAWN_KINDS)
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: it would remove the images and regions of records.")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}, but the model smooths its caption loss "
                "itself: set model.config.label_smoothing instead."
            )
        if self.detail_steps < 0:
            raise ValueError(f"detail_steps is {self.detail_steps}, expected at least 0.")
        if not 0 <= self.agreement_weight < float("inf"):
            raise ValueError(f"agreement_weight is {self.agreement_weight}, expected a number from 0 on.")
        for name in ("module_learning_rates", "prompt_probabilities"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                raise ValueError(f"{name} is {value!r}, expected a mapping of names to numbers.")


def _check_choice(name: str, value: str | None, allowed: Collection[str | None]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(str, allowed))}.")
