"""ScaTrainer: what it logs and evaluates, that evaluation leaves training alone, and that any split is one loss."""

import copy

import pytest
import torch
from PIL import Image
from tiny_runs import parameters, records, trainer
from transformers import HfArgumentParser

from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.collator import RegionCollator
from sca_hf.training.evaluation import Prediction, choose_samples, score_predictions


def test_evaluation_changes_nothing_of_training(make_model, processor, tmp_path):
    ends = []
    for options in (dict(), dict(eval_strategy="steps", eval_steps=1, sample_sheet=2)):
        run = trainer(make_model(), processor, tmp_path, prompt_shares={"box": 1, "point": 1}, **options)
        run.train()
        ends.append(parameters(run.model.mixer))
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    assert len(list((tmp_path / "samples").iterdir())) == 4


def test_the_evaluation_loss_is_that_of_the_whole_set_whatever_the_batches(model, processor, tmp_path):
    batch = RegionCollator(processor, training=False)(records(5))
    with torch.no_grad():
        expected = model(**batch).loss.item()
    for size in (1, 2, 5):
        run = trainer(model, processor, tmp_path, per_device_eval_batch_size=size, dataloader_drop_last=True)
        metrics = run.evaluate()
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
        assert len(run.predictions) == sum(len(record["regions"]) for record in records(5))


def test_evaluation_hears_every_region_once_and_in_order(model, processor, tmp_path):
    run = trainer(model, processor, tmp_path)
    metrics = run.evaluate()
    assert {"eval_cider_d", "eval_exact_match", "eval_loss"} <= metrics.keys()
    expected = [(k, n, r["captions"]) for k, record in enumerate(records(5)) for n, r in enumerate(record["regions"])]
    assert [(p.record, p.region, p.references) for p in run.predictions] == expected
    output = model.eval().generate(**RegionCollator(processor, training=False)(records(5)))
    assert [p.caption for p in run.predictions] == [text for texts in processor.batch_decode(output) for text in texts]


def test_the_image_encoder_runs_once_per_evaluated_batch(model, processor, tmp_path):
    calls = []
    model.sam.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    trainer(model, processor, tmp_path).evaluate()
    assert len(calls) == 2, "five pictures in batches of three, for the loss and for the captions"


def test_several_evaluation_sets_are_scored_apart(model, processor, tmp_path):
    sets = {"captions": records(2), "names": records(3, task="recognition")}
    metrics = trainer(model, processor, tmp_path, evaluation=sets, sample_sheet=1).evaluate()
    assert {"eval_captions_loss", "eval_names_loss", "eval_names_naming_accuracy"} <= metrics.keys()
    assert "eval_captions_naming_accuracy" not in metrics, "free captions name no category"
    sheets = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert sheets == ["captions-step-0.png", "names-step-0.png"]


def test_predicting_scores_another_set(model, processor, tmp_path):
    run = trainer(model, processor, tmp_path)
    output = run.predict(records(3))
    assert output.metrics["test_loss"] > 0 and len(run.predictions) == 7


def test_a_streamed_evaluation_set_needs_an_end(model, processor, tmp_path):
    with pytest.raises(ValueError, match="set max_eval_samples"):
        trainer(model, processor, tmp_path, evaluation=iter(records(5)))
    run = trainer(model, processor, tmp_path, evaluation=iter(records(5)), max_eval_samples=2)
    run.evaluate()
    assert {p.record for p in run.predictions} == {0, 1}


def test_logs_tell_the_speed(model, processor, tmp_path):
    run = trainer(model, processor, tmp_path, max_steps=2, regions_per_image=1, eval_strategy="steps", eval_steps=1)
    run.train()
    logs = [log for log in run.state.log_history if "loss" in log]
    assert all(log["regions_per_second"] == pytest.approx(log["images_per_second"], abs=0.02) for log in logs)
    assert len(logs) == 2 and logs[0]["images_per_second"] > 0


@pytest.mark.parametrize("preset", ["mixer", "mixer+mask_decoder"])
def test_accumulated_steps_are_large_steps(make_model, processor, tmp_path, preset):
    options = dict(preset=preset, mask_loss_weight=1.0 if preset != "mixer" else None, prompt_shares={"box": 1})
    ends = []
    for size, accumulated in ((4, 1), (1, 4)):
        run = trainer(
            make_model(),
            processor,
            tmp_path,
            train=records(masks=True),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            **options,
        )
        run.train()
        ends.append((parameters(run.model), [log["loss"] for log in run.state.log_history if "loss" in log]))
    assert ends[1][1] == pytest.approx(ends[0][1], abs=1e-5)
    for name, value in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_training_takes_its_regions_from_each_picture_again_in_each_epoch(model, processor, tmp_path):
    run = trainer(model, processor, tmp_path, regions_per_image=1, prompt_shares={"box": 1})
    boxes = []
    for epoch in (0, 1, 2):
        run.train_dataset.set_epoch(epoch)
        boxes.append(run.data_collator([run.train_dataset[k] for k in range(8)])["input_boxes"])
    assert not torch.equal(boxes[0], boxes[1]) and not torch.equal(boxes[1], boxes[2])


def test_a_cached_embedding_stands_for_its_picture(make_model, processor, tmp_path):
    ends = []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        model, calls = make_model(), []
        model.sam.vision_encoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run = trainer(model, processor, tmp_path, embedding_cache=cache, max_steps=2)
        run.train()
        ends.append((len(calls), run.evaluate()["eval_loss"]))
    assert ends[2][0] == 0, "all embeddings came from the cache"
    assert ends[1][1] == ends[2][1]
    assert ends[1][1] == pytest.approx(ends[0][1], abs=1e-3)


def test_naming_is_scored_where_names_are_asked_for():
    def heard(caption, references, category):
        return Prediction(0, 0, "caption", caption, 0.0, references, category)

    scores = score_predictions(
        [
            heard("A Red ring.", ["a red ring"], "ring"),
            heard("star", ["star"], "star"),
            heard("ring", ["star"], "star"),
            heard("ring", ["ring"], "ring"),
            heard("ring", ["ring"], "ring"),
        ]
    )
    assert scores["exact_match"] == pytest.approx(4 / 5)
    assert scores["naming_accuracy"] == pytest.approx(3 / 4)
    assert scores["naming_macro_recall"] == pytest.approx((1 / 2 + 2 / 2) / 2)


def test_the_sample_sheet_shows_many_pictures_before_it_shows_one_twice(model, processor, tmp_path):
    run = trainer(model, processor, tmp_path, sample_sheet=5)
    run.evaluate()
    picture = Image.open(tmp_path / "samples" / "step-0.png")
    assert picture.width > 1000 and picture.height > 300
    chosen = choose_samples(run.predictions, 5)
    assert [p.record for p in chosen] == [0, 1, 2, 3, 4] and len({p.region for p in chosen}) > 1
    assert len(choose_samples(run.predictions, 7)) == 7
    assert choose_samples(copy.deepcopy(run.predictions), 5) == chosen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(preset="lm"), "expected one of mixer"),
        (dict(label_smoothing_factor=0.1), r"model\.config\.label_smoothing"),
        (dict(remove_unused_columns=True), "must be False"),
        (dict(eval_prompt="lasso"), "expected one of box"),
        (dict(prompt_shares=[1]), "expected a mapping"),
        (dict(frozen_dtype="int4"), "expected one of None"),
        (dict(save_form="both"), "expected one of None"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(model, processor, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        trainer(model, processor, tmp_path, **arguments)


def test_arguments_come_from_a_command_line_too(tmp_path):
    words = ["--output_dir", str(tmp_path), "--preset", "mixer+lm", "--module_learning_rates", '{"mixer": 1e-3}']
    words += ["--prompt_shares", '{"box": 1, "point": 1}', "--augmentation", "lsj-0.1-2.0", "--use_cpu", "true"]
    (arguments,) = HfArgumentParser(ScaTrainingArguments).parse_args_into_dataclasses(words)
    assert arguments.module_learning_rates == {"mixer": 1e-3} and arguments.prompt_shares == {"box": 1, "point": 1}
    assert (arguments.augmentation, arguments.preset) == ("lsj-0.1-2.0", "mixer+lm")
    assert arguments.label_names == ["labels"]


def test_the_processor_is_needed(model, tmp_path):
    with pytest.raises(ValueError, match="processing_class"):
        trainer(model, None, tmp_path)
