"""The library's Trainer for regions: what to train, at which rates, and what the model says while it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import ProgressCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput

from ..data.sources import warn_of_leaks
from ..evaluation.naming import are_names
from ..processing.captions_sca import task_parts
from .adapters import restore_adapter
from .agreement import agreement_loss
from .arguments import ScaTrainingArguments
from .checkpoint.fingerprint import preserve_rng_state
from .checkpoint.trainer import ShardedCheckpoints
from .detail_pretraining import pretrain_detail_encoder
from .evaluation import (
    EvalAccumulator,
    IndexedCollator,
    IndexedRecords,
    Prediction,
    asks_for_names,
    save_sample_sheet,
    score_predictions,
    with_embeddings,
)
from .inputs import RunInputs
from .presets import default_learning_rates, parameter_groups, prepare_model
from .progress import RegionProgress, Throughput


class ScaTrainer(ShardedCheckpoints):
    """Trains a `ScaForConditionalGeneration` on region records.

    Beside what the library's Trainer does: presets of what to train, learning rates by module, captions generated and
    scored in evaluation with a picture of some of them, mixer-only checkpoints, regions per second in the logs.

    Args:
        model: The model, changed in place: which weights take gradients, adapters, precision of frozen parts.
        args: The [`ScaTrainingArguments`].
        train_dataset: The region records (`sca_hf.data.region`), by index or streamed.
        eval_dataset: The same for evaluation, or a dict of such.
        processing_class: The model's `ScaProcessor`; it also makes the collators and is saved with the model.
        data_collator: A collator in place of the [`RegionCollator`] that `args` describe, in training.
        eval_collator: The same in evaluation, where it takes every region of an image, in order, with its first text.
        kwargs: Further arguments of the library's Trainer.

    Attributes:
        predictions: The captions of the last evaluation, on every process.
    """

    args: ScaTrainingArguments

    def __init__(
        self,
        model: Any,
        args: ScaTrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: Callable[..., Mapping[str, Any]] | None = None,
        eval_collator: Callable[..., Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.preset = prepare_model(model, args)
        if args.push_to_hub and not model.include_base_models:
            model.check_published_base_models()
        if processing_class is None and (data_collator is None or eval_collator is None or args.eval_generate):
            raise ValueError("ScaTrainer needs the model's processor as processing_class, to build the batches.")
        if train_dataset is not None and eval_dataset is not None and args.process_index == 0:
            warn_of_leaks(train_dataset, eval_dataset)
        self.inputs = RunInputs(model, args, processing_class)
        self.eval_collator = eval_collator or self.inputs.collator(training=False)
        self.predictions: list[Prediction] = []
        self.throughput = Throughput()
        self._accumulator: EvalAccumulator | None = None
        super().__init__(
            model,
            args,
            data_collator=data_collator or self.inputs.collator(training=True),
            train_dataset=self.inputs.for_training(train_dataset),
            eval_dataset=self.inputs.for_evaluation(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        if args.agreement_weight and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("agreement_weight must be 0 under FSDP and DeepSpeed: the language model is in shards.")
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(RegionProgress)
        if args.default_best_metric:
            names = args.eval_generate and not isinstance(self.eval_dataset, dict) and self.evaluates_names
            args.greater_is_better = bool(names)
            args.metric_for_best_model = "naming_accuracy" if names else "loss"

    @property
    def evaluates_names(self) -> bool:
        """Whether the references of every evaluation set are class names, so that accuracy leads."""
        sets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        return all(dataset is not None and asks_for_names(dataset, self.args.task) for dataset in sets)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Pretrains the detail encoder if `detail_steps` asks for it and no run is resumed, then trains."""
        if self.args.detail_steps and not resume_from_checkpoint:
            self._pretrain_details()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _pretrain_details(self) -> None:
        args = self.args
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "detail_steps cannot run under FSDP or DeepSpeed: pretrain the detail encoder in a run without them."
            )
        pretrain_detail_encoder(
            self.model,
            self.processing_class,
            self.train_dataset,
            args.output_dir,
            steps=args.detail_steps,
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            like=args,
        )
        set_seed(args.seed)  # the same whether it was trained now or loaded

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups parameters by module, then lets the library make its optimizer of them."""
        given = self.optimizer_cls_and_kwargs
        trained = self.model if model is None else model
        if self.optimizer is None:
            unwrapped = self.accelerator.unwrap_model(trained)
            rates = default_learning_rates(unwrapped, self.args.preset, self.args.learning_rate)
            rates.update(cast(dict[str, float], self.args.module_learning_rates or {}))
            groups = parameter_groups(
                trained,
                self.args.learning_rate,
                self.args.weight_decay,
                self.get_decay_parameter_names(trained),
                rates,
            )
            kind, options = given or self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer_cls_and_kwargs = (kind, {"params": groups, **options})
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = given

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Counts what is trained on."""
        self.throughput.count(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the speed of training since the last log, over all processes."""
        if "loss" in logs:
            counts = self.accelerator.reduce(self.throughput.take().to(self.args.device), reduction="sum")
            images, regions, seconds = counts.tolist()
            if seconds > 0:
                rates = {"images_per_second": images / seconds, "regions_per_second": regions / seconds}
                logs |= {name: round(value * self.args.world_size, 2) for name, value in rates.items()}
        super().log(logs, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Encodes images ahead where embeddings are cached."""
        self.inputs.fill_cache(self.train_dataset)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Loads records with all their regions, and their positions."""
        if not isinstance(eval_dataset, str):
            eval_dataset = self.inputs.for_evaluation(eval_dataset)
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        self.inputs.fill_cache(self.eval_dataset[chosen] if isinstance(chosen, str) else chosen)
        with self._reading_all():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As in evaluation."""
        records = self.inputs.for_evaluation(test_dataset)
        self.inputs.fill_cache(records)
        with self._reading_all():
            return super().get_test_dataloader(records)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the library does; training continues as if there had been no evaluation."""
        self.throughput.pause()
        with preserve_rng_state():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Adds losses that do not depend on batches or processes, scores of generated captions, and a picture."""
        records: IndexedRecords = dataloader.dataset
        self._accumulator = EvalAccumulator(records.truth, self.args.task, self.model.config.label_smoothing)
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            self.predictions, metrics = self._accumulator.gather(self.model.config.mask_loss_weight)
        finally:
            self._accumulator = None
        scores = score_predictions(self.predictions)
        found = {f"{metric_key_prefix}_{name}": value for name, value in (metrics | scores).items()}
        # Accuracy of names comes before the losses.
        first = [f"{metric_key_prefix}_{name}" for name in scores] if are_names(self.predictions) else []
        output = output._replace(metrics={name: found[name] for name in first} | output.metrics | found)
        if self.predictions and self.args.sample_sheet and self.is_world_process_zero():
            folder, step = Path(self.args.output_dir) / "samples", self.state.global_step
            save_sample_sheet(
                folder, metric_key_prefix, step, records.records, self.predictions, self.args.sample_sheet, scores
            )
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Encodes images once, for the loss and for the captions."""
        inputs = self._prepare_inputs(inputs)
        indices = inputs.pop("record_index").tolist()
        with torch.no_grad():
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                with self.accelerator.autocast():
                    inputs = with_embeddings(self.accelerator.unwrap_model(self.model), inputs)
            result = super().prediction_step(model, inputs, *args, **kwargs)
            if self._accumulator is not None:
                self._accumulator.add_losses(indices, inputs["labels"], inputs.get("mask_labels"))
                if self.args.eval_generate:
                    self._accumulator.add_captions(indices, *self._captions(inputs))
        return result

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Adds agreement in training, and keeps the model's output for evaluation."""
        agrees = self.args.agreement_weight and model.training
        result = super().compute_loss(partial(self._agreeing, model) if agrees else model, inputs, *args, **kwargs)
        if self._accumulator is not None and isinstance(result, tuple):
            self._accumulator.outputs = result[1]
        return result

    def _agreeing(self, model: nn.Module, **inputs: Any) -> Any:
        """The model's output, with agreement in its loss."""
        output, items = model(**inputs), inputs.get("num_items_in_batch")
        language_model = self.accelerator.unwrap_model(model).language_model
        with self.accelerator.autocast():
            loss = agreement_loss(language_model, output.prefix_embeds, inputs["labels"], items)
        output["loss"] = output.loss + self.args.agreement_weight * loss
        return output

    def _captions(self, inputs: dict[str, Any]) -> tuple[list[Any], torch.Tensor, list[list[str | None]]]:
        """Captions of a batch, their scores (B, R), and the languages they were asked for in (B, R)."""
        model = self.accelerator.unwrap_model(self.model)
        options: dict[str, Any] = {"output_masks": False, "output_caption_scores": True}
        if self.is_fsdp_enabled:
            # Each call gathers shards of all processes: all make one, however many regions they have.
            options["language_model_batch_size"] = inputs["labels"].shape[:2].numel()
        with self.accelerator.autocast():
            output = model.generate(**inputs, **options, return_dict_in_generate=True)
        languages = [task_parts(name)[1] for name in self.processing_class.tasks]
        asked = [[languages[task] for task in row] for row in inputs["task_ids"].tolist()]
        return self.processing_class.batch_decode(output), output.caption_scores, asked

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.throughput.pause()
        super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.preset.with_adapters and not self.is_fsdp_enabled:
            restore_adapter(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.preset.with_adapters and not self.is_fsdp_enabled:
            restore_adapter(self.accelerator.unwrap_model(self.model), Path(str(self.state.best_model_checkpoint)))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None are counted: the library would take every pixel for a token of every part."""
        return 0

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses a checkpoint that does not fit, where the library would warn."""
        model = self.accelerator.unwrap_model(self.model)
        expected = set(model._keys_to_ignore_on_save or ()) | set(model.all_tied_weights_keys or ())
        missing, unexpected = set(load_result.missing_keys) - expected, list(load_result.unexpected_keys)
        if missing or unexpected:
            raise ValueError(
                f"the checkpoint belongs to another model or preset: it is missing {sorted(missing)[:3]} and has the "
                f"unknown {unexpected[:3]}."
            )
        model.tie_weights()

    @contextmanager
    def _reading_all(self) -> Iterator[None]:
        """Makes the library build a loader for evaluation: with another collator, and with the last records."""
        collator, drop_last = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = IndexedCollator(self.eval_collator), False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last
