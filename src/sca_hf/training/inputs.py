"""What a run reads: collators, records that know what they are drawn by, embeddings kept on disk."""

from __future__ import annotations

from typing import Any, cast

from ..data.loading import leave_undecoded
from ..data.pasting import training_augmentation
from .arguments import PRESETS, SECOND_LOOK, ScaTrainingArguments
from .checkpoint.fingerprint import preserve_rng_state
from .collator import RegionCollator
from .draws import DrawnStream, SeededDataset
from .embedding_cache import CachedRecords, EmbeddingCache, refuse_augmentation
from .evaluation import IndexedRecords, first_records


_LOOKED_AT = 64


class RunInputs:
    """Turns the records that a run is given into what its loaders read.

    Args:
        model: The model, whose image encoder makes the embeddings where they are kept.
        args: The arguments of the run.
        processor: The model's `ScaProcessor`.
    """

    def __init__(self, model: Any, args: ScaTrainingArguments, processor: Any) -> None:
        self.args, self.processor = args, processor
        self.image_size = model.config.image_frame.side
        # A second look sees more than the low-resolution masks show.
        self.mask_label_size = self.image_size if SECOND_LOOK in PRESETS[args.preset].trained else None
        self.cache = None
        if args.embedding_cache is not None:
            self.cache = EmbeddingCache(args.embedding_cache, model, processor, args.mask_loss_weight or 0.0)
        self._filled: set[int] = set()

    def collator(self, training: bool) -> RegionCollator:
        """Makes batches as the arguments describe; in evaluation every region comes, prompted in one way."""
        args = self.args
        return RegionCollator(
            self.processor,
            prompt_probabilities=cast(Any, args.prompt_probabilities) if training else {args.eval_prompt: 1.0},
            regions_per_image=args.regions_per_image,
            box_jitter=args.box_jitter,
            task=args.task,
            training=training,
            mask_labels=bool(args.mask_loss_weight),
            mask_label_size=self.mask_label_size,
        )

    def for_training(self, dataset: Any) -> Any:
        """Records that know what they are drawn by, augmented as the arguments say."""
        if dataset is None or isinstance(dataset, SeededDataset | DrawnStream):
            return dataset
        dataset = leave_undecoded(dataset)
        args, kind = self.args, SeededDataset if hasattr(dataset, "__len__") else DrawnStream
        if args.mask_loss_weight and kind is SeededDataset:
            _check_masks(dataset)
        augmentation = training_augmentation(args.augmentation, self.image_size, dataset)
        if self.cache is not None:
            refuse_augmentation(augmentation)
            dataset = CachedRecords(dataset, self.cache)
        return kind(dataset, args.seed if args.data_seed is None else args.data_seed, augmentation)

    def for_evaluation(self, dataset: Any) -> Any:
        """Records that know their positions; a dict of data sets becomes one of such."""
        if dataset is None or isinstance(dataset, IndexedRecords):
            return dataset
        if isinstance(dataset, dict):
            return {name: self.for_evaluation(part) for name, part in dataset.items()}
        records = first_records(leave_undecoded(dataset), self.args.max_eval_samples)
        return IndexedRecords(records, None if self.cache is None else CachedRecords(records, self.cache))

    def fill_cache(self, dataset: Any) -> None:
        """Makes missing embeddings ahead, once per data set: workers that load records have no encoder."""
        records = dataset.inputs if isinstance(dataset, IndexedRecords) else getattr(dataset, "dataset", None)
        if isinstance(records, CachedRecords) and id(records) not in self._filled:
            with preserve_rng_state():
                records.fill(
                    self.args.per_device_eval_batch_size,
                    self.args.dataloader_num_workers,
                    progress=not self.args.disable_tqdm and self.args.process_index == 0,
                )
            self._filled.add(id(records))


def _check_masks(dataset: Any) -> None:
    """Refuses to train masks on records without any; only the first ones of a data set are looked at."""
    regions = [region for k in range(min(len(dataset), _LOOKED_AT)) for region in dataset[k]["regions"]]
    if not any(region.get("mask") for region in regions):
        raise ValueError(
            f"mask_loss_weight trains masks, but none of the first {len(regions)} regions has one: choose a preset "
            "without masks, or data with masks."
        )
