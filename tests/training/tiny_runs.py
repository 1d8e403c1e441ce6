"""Runs small enough for a test: eight pictures of two regions, and the trainer around a tiny model."""

import json

from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.testing import CAPTIONS, tiny_image
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.trainer import ScaTrainer


BOXES = ([5.0, 5.0, 40.0, 30.0], [30.0, 20.0, 70.0, 55.0], [2.0, 30.0, 20.0, 58.0])
# Uncompressed run lengths in column order: the left third and the right two thirds of 80 x 60.
MASKS = ({"size": [60, 80], "counts": [0, 1600, 3200]}, {"size": [60, 80], "counts": [1600, 3200]})


def records(count=8, task="caption", masks=False):
    """Every third picture has three regions; captions turn with the picture."""
    return [
        dict(
            image=tiny_image(k),
            image_id=str(k),
            width=80,
            height=60,
            task=task,
            regions=[
                dict(
                    region_id=f"{k}-{n}",
                    box=BOXES[n],
                    mask=MASKS[n % 2] if masks else None,
                    captions=[CAPTIONS[(k + n) % len(CAPTIONS)]],
                    category=("ring", "star", "cat")[(k + n) % 3],
                )
                for n in range(3 if k % 3 == 0 else 2)
            ],
        )
        for k in range(count)
    ]


def written(tmp_path, *regions):
    """Options of a JSON Lines set of one picture with these regions."""
    tiny_image(0).save(tmp_path / "a.png")
    row = {"image": "a.png", "image_id": "a", "regions": [{"box": [3, 3, 40, 40], **region} for region in regions]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return {"format": "jsonl", "path": tmp_path / "rows.jsonl"}


def saved_model(make_model, folder, **options):
    """A tiny model whose parts come from a folder."""
    if not folder.exists():
        make_model(**options).save_pretrained(folder)
    return ScaForConditionalGeneration.from_pretrained(folder)


def trainer(model, processor, folder, train=None, evaluation=None, **arguments):
    """The trainer on `records()`, in steps of two pictures."""
    settings = dict(
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        max_steps=4,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        sample_sheet=0,
    )
    return ScaTrainer(
        model,
        ScaTrainingArguments(str(folder), **(settings | arguments)),
        train_dataset=records() if train is None else train,
        eval_dataset=records(5) if evaluation is None else evaluation,
        processing_class=processor,
    )


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}
