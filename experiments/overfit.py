"""Can the model say free captions at all, and of the region that it is shown? Photographs learned by heart.

    python -m experiments.overfit --data data/coco_permissive --output runs/overfit

Trains by experiments/overfit.yaml, then captions the very regions it was trained on: CIDEr-D, and how often two boxes
of one picture get two captions, where the truth has two.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from pathlib import Path

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.training import ScaTrainer, ScaTrainingArguments
from sca_hf.training.recipe.run import build_datasets, run_recipe
from sca_hf.training.recipe.schema import load_recipe


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder in Visual Genome's form")
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    changes = [f"--data.train.root={options.data}", f"--data.eval.0.root={options.data}", f"--output={options.output}"]
    recipe = load_recipe(Path(__file__).with_suffix(".yaml"), changes)
    result = run_recipe(recipe)
    _, records = build_datasets(recipe.data)
    model = ScaForConditionalGeneration.from_pretrained(result.model)
    args = ScaTrainingArguments(output_dir=options.output, report_to="none")
    trainer = ScaTrainer(model, args, processing_class=ScaProcessor.from_pretrained(result.model))
    metrics = trainer.evaluate(records)
    by_image = defaultdict(list)
    for said in trainer.predictions:
        by_image[said.record].append((said.caption, said.references[0]))
    pairs = [pair for regions in by_image.values() for pair in itertools.combinations(regions, 2)]
    different = [one[0] != other[0] for one, other in pairs if one[1] != other[1]]
    print(f"images {len(by_image)}, regions {len(trainer.predictions)}")
    print(f"CIDEr-D {metrics['eval_cider_d']:.2f} of 10, word for word {metrics['eval_exact_match']:.1%}")
    print(f"two boxes of one picture, two captions: {sum(different)} of {len(different)} pairs whose truths differ")


if __name__ == "__main__":
    main()
