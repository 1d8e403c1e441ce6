"""The paper's ablations (tables 4 to 7) on `scenes`: mixers, depth, queries, encoders, trained parts, at one budget.

    python -m experiments.ablations --output runs/ablations --seeds 0 1 2 --page docs/experiments.md

Every row trains a new mixer between a segmenter and the language model of sca-tiny, by one recipe, and captions test
scenes from boxes and points. A row that is done is read from its file, one that was stopped is resumed. Plain encoders
are small and random, as no trained ones are at hand: they compare what a frozen random encoder of each kind leaves to
see, and not what CLIP or DINOv2 have learned.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from experiments.pages import command_line, seed_table, show
from experiments.sca_tiny.scenes_report import caption_scores, run_scenes
from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.captioning import load
from sca_hf.data.scenes import scenes
from sca_hf.files import read_json, write_whole
from sca_hf.modeling.encoder_sca import ScaEncoderModel
from sca_hf.training.recipe.run import run_recipe
from sca_hf.training.recipe.schema import Recipe


_SIZES = dict(image_size=192, num_hidden_layers=4, num_attention_heads=4, hidden_size=96, intermediate_size=192)
ENCODERS: dict[str, dict[str, Any]] = {
    "CLIP": dict(model_type="clip_vision_model", patch_size=16, projection_dim=32, **_SIZES),
    "SigLIP": dict(model_type="siglip_vision_model", patch_size=16, vision_use_head=False, **_SIZES),
    "DINOv2": dict(model_type="dinov2", patch_size=16, **_SIZES),
    "MAE": dict(model_type="vit_mae", patch_size=16, **_SIZES),
    "ConvNeXt": dict(model_type="convnext", image_size=192, patch_size=4, hidden_sizes=[24, 48, 96], depths=[1, 1, 2],
                     num_stages=3),
}  # fmt: skip
# Name of a row -> fields of the mixer, recipe's training settings, encoder.
MIXERS: dict[str, dict[str, Any]] = {
    "joint mixer (published)": {},
    "split mixer": dict(token_source="prompt", image_source="encoder"),
    "without SAM's tokens": dict(token_source="none"),
    "image of the encoder": dict(image_source="encoder"),
    "direct decoding": dict(query_type="mask_tokens"),
    "direct decoding, projection only": dict(query_type="mask_tokens", num_hidden_layers=0),
    "ROI pooling": dict(query_type="roi", num_hidden_layers=0, roi_size=2),
    "ROI pooling, mixed": dict(query_type="roi", roi_size=2),
    "2 layers": dict(num_hidden_layers=2),
    "8 layers": dict(num_hidden_layers=8),
    "2 queries": dict(num_caption_tokens=2),
}
TRAINED = {"mixer and language model": "mixer+lm", "mixer and mask decoder": "mixer+mask_decoder", "all": "all"}
SCORES = ("mask_iou", "color", "shape", "texture", "size", "relation", "cider_d")
MARKS = ("<!-- ablations -->", "<!-- end of ablations -->")


def rows() -> dict[str, dict[str, Any]]:
    """Every row of the table: what its mixer, encoder and training are."""
    found = {name: {"mixer": fields} for name, fields in MIXERS.items()}
    found |= {f"encoder {name}": {"encoder": name} for name in ENCODERS}
    return found | {f"trained: {name}": {"preset": preset} for name, preset in TRAINED.items()}


def start_model(row: dict[str, Any], folder: Path, seed: int) -> Path:
    """Saves the model that a row starts from: parts of sca-tiny, a new mixer, and another encoder where it has one."""
    whole, processor = load("sca-tiny")
    torch.manual_seed(seed)
    sam: Any = whole.sam
    if "encoder" in row:
        fields = dict(ENCODERS[row["encoder"]])
        encoder = AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
        sam = ScaEncoderModel.from_encoder(encoder, sam, 192)
    published = whole.config.mixer_config
    kept = ("num_attention_heads", "mlp_dim", "num_task_tokens", "num_caption_tokens", "num_hidden_layers", "tasks")
    mixer = {name: getattr(published, name) for name in kept} | row.get("mixer", {})
    model = ScaForConditionalGeneration.from_sam_text_pretrained(sam, whole.language_model, mixer)
    model.save_pretrained(folder)
    ScaProcessor.from_config(model.config, processor.tokenizer).save_pretrained(folder)
    return folder


def measure(row: dict[str, Any], folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains a row, if that is not done yet, and scores it on test scenes."""
    done = folder / "scores.json"
    setting = {"steps": options.steps, "scenes": options.scenes, "test": options.test, "row": row}
    if done.is_file():
        known = read_json(done, dict)
        if known["setting"] == setting:
            return known
        raise SystemExit(f"{done} is of another setting ({known['setting']}): name another --output.")
    begun = time.process_time()
    if not (folder / "start").is_dir():
        start_model(row, folder / "start", seed)
    recipe = Recipe.from_mapping(
        {
            "model": {"from": str(folder / "start")},
            "data": {"train": {"format": "scenes", "split": "train", "count": options.scenes}},
            "training": {
                "max_steps": options.steps,
                "save_steps": max(1, options.steps // 4),
                "per_device_train_batch_size": 8,
                "regions_per_image": 4,
                "learning_rate": 1e-3,
                "warmup_steps": options.steps // 20,
                "preset": row.get("preset", "mixer"),
                "mask_loss_weight": 1.0 if "mask_decoder" in row.get("preset", "") else None,
                "seed": seed,
                "use_cpu": True,
                "sample_sheet": 0,
                "save_form": "whole",
            },
            "output": str(folder / "run"),
        }
    )
    trained, processor = load(str(run_recipe(recipe).model))
    scores = {
        prompt: caption_scores(run_scenes(trained, processor, scenes("test", options.test), prompt))
        for prompt in ("box", "point")
    }
    result = {"setting": setting, "seed": seed, "cpu_seconds": time.process_time() - begun, "scores": scores}
    write_whole(done, json.dumps(result, indent=1))
    return result


def table(results: dict[str, Sequence[dict[str, Any]]], prompt: str = "box") -> str:
    """Means and standard deviations over seeds, as Markdown."""
    rows = {name: [[one["scores"][prompt][s] for s in SCORES] for one in found] for name, found in results.items()}
    return seed_table(SCORES, rows)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--rows", nargs="+", choices=rows(), default=list(rows()), metavar="ROW", help="by their names"
    )
    parser.add_argument("--steps", type=int, default=250, help="of training (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on (default: %(default)s)")
    parser.add_argument("--test", type=int, default=100, help="test scenes (default: %(default)s)")
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for name in options.rows:
            folder = options.output / re.sub(r"\W+", "-", name) / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            results.setdefault(name, []).append(measure(rows()[name], folder, seed, options))
            print(f"seed {seed}, {name}: {results[name][-1]['scores']['box']}", flush=True)
    hours = sum(one["cpu_seconds"] for of_seeds in results.values() for one in of_seeds) / 3600
    budget = f"{options.steps} steps on {options.scenes} scenes, {len(options.seeds)} seeds, {hours:.1f} CPU hours"
    text = f"{budget}. From boxes:\n\n{table(results)}\n\nFrom points:\n\n{table(results, 'point')}"
    show(text, options.page, MARKS)


if __name__ == "__main__":
    main()
