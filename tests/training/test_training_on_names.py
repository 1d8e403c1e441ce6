"""Training on class names: accuracy leads in scores, samples, the draft of a card and the choice of the best model."""

import json

import pytest
from tiny_runs import BOXES, records, trainer

from sca_hf.evaluation.naming import NAMES_NOTE
from sca_hf.testing import tiny_image
from sca_hf.training import evaluation as evaluation_module
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.evaluation import Prediction, save_sample_sheet, score_predictions


CLASSES = ("red circle", "blue triangle", "red circle", "man")


def named(count=4, category=True, **fields):
    """Pictures of one region each, whose caption is the name of its class."""
    return [
        dict(image=tiny_image(k), image_id=str(k), width=80, height=60, task="caption", regions=[region], **fields)
        for k in range(count)
        for region in [
            dict(region_id="0", box=BOXES[k % 3], captions=[CLASSES[k]], category=CLASSES[k] if category else None)
        ]
    ]


def predictions(*pairs, category=True):
    return [
        Prediction(k, 0, "caption", said, 0.0, [truth], truth if category else None)
        for k, (truth, said) in enumerate(pairs)
    ]


@pytest.mark.parametrize("category", [True, False])
def test_accuracy_and_macro_recall_lead_where_all_references_are_names(category):
    scores = score_predictions(predictions(("man", "man"), ("man", "man"), ("ring", "man"), category=category))
    assert list(scores) == ["naming_accuracy", "naming_macro_recall", "exact_match", "cider_d"]
    assert scores["naming_accuracy"] == pytest.approx(2 / 3) and scores["naming_macro_recall"] == pytest.approx(1 / 2)
    mixed = score_predictions([*predictions(("man", "man")), Prediction(1, 0, "caption", "x", 0.0, ["a man sits"])])
    assert list(mixed)[:2] == ["cider_d", "exact_match"]


def test_an_evaluation_says_accuracy_first(model, processor, tmp_path):
    names = [key for key in trainer(model, processor, tmp_path, evaluation=named()).evaluate() if "_per_" not in key]
    assert names[:2] == ["eval_naming_accuracy", "eval_naming_macro_recall"] and "eval_loss" in names
    captions = list(trainer(model, processor, tmp_path).evaluate())
    assert captions.index("eval_loss") < captions.index("eval_cider_d") and "eval_naming_accuracy" not in captions


BEST = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True)


@pytest.mark.parametrize(
    ("evaluation", "options", "metric", "greater"),
    [
        (named(), {}, "naming_accuracy", True),
        (named(category=False), {}, "naming_accuracy", True),
        (records(3), {"task": "recognition"}, "naming_accuracy", True),
        (records(3), {}, "loss", False),
        (named(), {"metric_for_best_model": "loss"}, "loss", False),
        (named(), {"metric_for_best_model": "cider_d"}, "cider_d", True),
        (named(), {"eval_generate": False}, "loss", False),
        (named(), {"lr_scheduler_type": "reduce_lr_on_plateau"}, "loss", False),
    ],
)
def test_the_best_model_is_chosen_by_accuracy_of_names(
    model, processor, tmp_path, evaluation, options, metric, greater
):
    run = trainer(model, processor, tmp_path, evaluation=evaluation, **BEST, **options)
    assert (run.args.metric_for_best_model, run.args.greater_is_better) == (metric, greater)


def test_the_best_of_a_run_is_the_one_that_named_most(make_model, processor, tmp_path, monkeypatch):
    run = trainer(make_model(), processor, tmp_path, evaluation=named(), max_steps=3, **BEST)
    # The second evaluation names most, while its loss lies between the others'.
    given = iter((0.2, 0.9, 0.4))
    honest = score_predictions
    monkeypatch.setattr(
        "sca_hf.training.trainer.score_predictions", lambda said: honest(said) | {"naming_accuracy": next(given)}
    )
    run.train()
    assert run.state.best_metric == 0.9 and run.state.best_model_checkpoint.endswith("checkpoint-2")


def test_arguments_of_one_run_serve_another_of_captions(make_model, processor, tmp_path):
    first = trainer(make_model(), processor, tmp_path, evaluation=named(), **BEST)
    again = type(first)(make_model(), first.args, records(), records(3), processor)
    assert again.args.metric_for_best_model == "loss" and again.args.greater_is_better is False
    assert ScaTrainingArguments(str(tmp_path)).metric_for_best_model is None


def test_the_sample_sheet_says_accuracy_and_shows_wrong_names_first(tmp_path, monkeypatch):
    drawn = []
    draw = evaluation_module.draw_sheet
    monkeypatch.setattr(
        evaluation_module, "draw_sheet", lambda tiles, title="": drawn.append((tiles, title)) or draw(tiles, title)
    )
    said = predictions(("red circle", "Red circle."), ("blue triangle", "man"), ("red circle", "man"), ("man", "man"))
    save_sample_sheet(tmp_path, "eval", 1, named(), said, 4, score_predictions(said))
    (tiles, title) = drawn.pop()
    assert title == "accuracy 0.500, macro recall 0.500"
    texts = [[line for line, _ in tile.lines] for tile in tiles]
    assert [line for line, _ in texts] == ["says: man", "says: man", "says: Red circle.", "says: man"]
    assert texts[0][1] == "true: blue triangle"
    captions = [Prediction(0, 0, "caption", "a man", 0.0, ["a red circle in the sand"])]
    save_sample_sheet(tmp_path, "eval", 2, named(), captions, 4, score_predictions(captions))
    assert drawn[0][1] == ""


def test_a_recipe_leaves_accuracy_first_and_the_reason_in_the_draft(make_model, processor, tmp_path):
    from sca_hf.training.recipe.run import run_recipe
    from sca_hf.training.recipe.schema import Recipe

    make_model().save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    lines = []
    for row in named():
        row["image"].save(tmp_path / f"{row['image_id']}.png")
        lines.append(json.dumps({**row, "image": f"{row['image_id']}.png"}))
    (tmp_path / "names.jsonl").write_text("\n".join(lines))
    data = {"format": "jsonl", "path": str(tmp_path / "names.jsonl")}
    training = {"max_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "sample_sheet": 0}
    values = {"model": {"from": str(tmp_path / "base")}, "data": {"train": data, "eval": [data]}}
    recipe = Recipe.from_mapping({**values, "training": training, "output": str(tmp_path / "run")})
    for result in (run_recipe(recipe), run_recipe(recipe)):
        shown = str(result).splitlines()
        assert next(line.split(":")[0] for line in shown if line.startswith("eval_")) == "eval_naming_accuracy"
        assert shown[-1] == NAMES_NOTE
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| score | value |\n| --- | --- |\n| naming accuracy |" in card and NAMES_NOTE in card
