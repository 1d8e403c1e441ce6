"""Does it pay to learn category names before captions? The paper's weak supervision (section 3.4), in small.

    python -m experiments.pretraining --sam runs/sca-tiny/segmentation/sam --text runs/sca-tiny/language/text \
        --cache runs/sca-tiny/scenes --output runs/pretraining

The mixer of the bundled model's size learns captions of `scenes` for the same number of steps, once from scratch and
once from a mixer that had learned category names before; from many captioned scenes, and from few. Scores are of
captions from boxes on unseen test scenes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from transformers import AutoTokenizer

from experiments.sca_tiny.captioning import CaptioningSettings, new_captioner, train_captioning
from experiments.sca_tiny.scenes_report import caption_scores, run_scenes
from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.data.scenes import scenes


SCORES = ("cider_d", "color", "shape", "texture", "size", "relation")


def stage(folder: Path, start: Path | None, options: argparse.Namespace, **settings: float) -> Path:
    """Trains one stage, if that is not done yet, from `start` or from an untrained mixer."""
    if (folder / "model").exists():
        return folder / "model"
    if start is None:
        model = new_captioner(options.sam, options.text)
        processor = ScaProcessor.from_config(model.config, AutoTokenizer.from_pretrained(options.text))
    else:
        model, processor = ScaForConditionalGeneration.from_pretrained(start), ScaProcessor.from_pretrained(start)
    steps = options.steps
    chosen = CaptioningSettings(steps=steps, eval_steps=10 * steps, save_steps=steps, batch_size=8, **settings)  # type: ignore[arg-type]
    return train_captioning(model, processor, folder, options.cache, chosen)


def scores(model_folder: Path, count: int) -> dict[str, float]:
    """Scores captions from boxes on test scenes."""
    model = ScaForConditionalGeneration.from_pretrained(model_folder).eval()
    processor = ScaProcessor.from_pretrained(model_folder)
    return caption_scores(run_scenes(model, processor, scenes("test", count), "box", task="caption"))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", type=Path, required=True, help="the trained SAM of the bundled model's recipe")
    parser.add_argument("--text", type=Path, required=True, help="its language model")
    parser.add_argument("--cache", type=Path, required=True, help="folder of rendered scenes and their embeddings")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="of each stage")
    parser.add_argument("--scenes", nargs="+", type=int, default=[16_000, 500], help="captioned scenes")
    parser.add_argument("--named-scenes", type=int, default=16_000, help="scenes with category names")
    parser.add_argument("--test-scenes", type=int, default=300)
    options = parser.parse_args()
    lines = [f"| captioned scenes | before | {' | '.join(SCORES)} |", "|" + " --- |" * (len(SCORES) + 2)]
    runs: dict[tuple[int, str], list[dict[str, float]]] = {}
    for seed in options.seeds:
        for count in options.scenes:
            for before in ("nothing", "names"):
                folder = options.output / f"{count}-{before}-{seed}"
                report = folder / "scores.json"
                if not report.exists():
                    start = None
                    if before == "names":
                        start = stage(
                            options.output / f"names-{seed}",
                            None,
                            options,
                            seed=seed,
                            recognition_share=1.0,
                            train_scenes=options.named_scenes,
                        )
                    model = stage(folder, start, options, seed=seed, recognition_share=0.0, train_scenes=count)
                    report.write_text(json.dumps(scores(model, options.test_scenes), indent=2) + "\n")
                runs.setdefault((count, before), []).append(json.loads(report.read_text()))
                print(seed, count, before, {name: round(runs[count, before][-1][name], 3) for name in SCORES})
    for (count, before), found in runs.items():
        cells = [[run[name] for run in found] for name in SCORES]
        row = " | ".join(f"{statistics.mean(c):.3f} ± {statistics.pstdev(c):.3f}" for c in cells)
        lines.append(f"| {count:,} | {before} | {row} |")
    (options.output / "pretraining.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
