"""Stages 3 and 4: the mixer learns category names, then captions; SAM and the language model stay frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sca_hf.data.scenes import scenes
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.run_identity import weights_digest
from sca_hf.training.checkpoint.trainer import WholeCheckpoints
from sca_hf.training.collator import RegionCollator
from sca_hf.training.draws import SeededDataset

from .scene_cache import load_scene_arrays
from .scene_records import RecognitionShare, SceneRecords, cache_embeddings
from .scenes_report import caption_scores, run_scenes
from .stages import save_whole, stage_arguments, train_from_last_checkpoint


@dataclass
class CaptioningSettings:
    """What a caption stage may be asked for; the defaults are those of the last stage of `sca-tiny`.

    recognition_share: how often an image is to be answered with category names: 1 in weak supervision, and a little
    later on, lest the model forget that task.
    """

    recognition_share: float = 0.1
    train_scenes: int = 16_000
    eval_scenes: int = 100
    steps: int = 8_000
    batch_size: int = 8
    regions_per_image: int = 4
    learning_rate: float = 1e-3
    eval_steps: int = 1_000
    save_steps: int = 500
    seed: int = 0
    prompt_probabilities: dict[str, float] = field(
        default_factory=lambda: {"jittered_box": 0.45, "point": 0.3, "mask_center_point": 0.15, "mask": 0.1}
    )


def new_captioner(sam: Path, text: Path) -> ScaForConditionalGeneration:
    """Joins the parts by an untrained mixer of the bundled size."""
    mixer = {"num_hidden_layers": 4, "num_attention_heads": 4, "mlp_dim": 256}
    return ScaForConditionalGeneration.from_sam_text_pretrained(sam, text, mixer_config=mixer, label_smoothing=0.0)


def train_captioning(
    model: ScaForConditionalGeneration,
    processor: ScaProcessor,
    folder: Path,
    cache: Path,
    settings: CaptioningSettings,
) -> Path:
    """Trains the mixer in `folder`, resuming from its last checkpoint, and returns the folder of the whole model."""
    arrays = load_scene_arrays(cache, "train", settings.train_scenes, model.config.sam_config.vision_config.image_size)
    name = f"embeddings-{len(arrays)}-{weights_digest(model.sam.vision_encoder.state_dict())[:32]}.npy"
    embeddings = cache_embeddings(model.sam, arrays, cache / name)
    torch.manual_seed(settings.seed)
    arguments = stage_arguments(
        folder,
        settings,
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = SceneTrainer(
        model=model,
        args=arguments,
        data_collator=RegionCollator(
            processor, settings.prompt_probabilities, settings.regions_per_image, box_jitter=0.04
        ),
        train_dataset=SeededDataset(
            SceneRecords(arrays, embeddings, "train"), settings.seed, RecognitionShare(settings.recognition_share)
        ),
        eval_dataset=list(range(settings.eval_scenes)),
        processing_class=processor,
    )
    trainer.score = lambda: scene_scores(model, processor, settings)
    train_from_last_checkpoint(trainer)
    return save_whole(folder / "model", model, processor)


class SceneTrainer(WholeCheckpoints):
    """The Trainer, whose evaluation generates captions and scores their words."""

    score: Callable[[], dict[str, float]]

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Scores the model's own captions of validation scenes."""
        self.model.eval()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.score().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def scene_scores(
    model: ScaForConditionalGeneration, processor: ScaProcessor, settings: CaptioningSettings
) -> dict[str, float]:
    """Scores captions from boxes and from points on validation scenes."""
    task = "recognition" if settings.recognition_share == 1 else "caption"
    scores: dict[str, float] = {}
    for prompt in ("box", "point"):
        pictures = scenes("validation", settings.eval_scenes)
        results = run_scenes(model, processor, pictures, prompt, task=task)
        scores |= {f"{prompt}_{name}": value for name, value in caption_scores(results).items()}
    return scores
