"""The library's own Trainer with our model, processor and collator: nothing of ours is needed but `label_names`."""

import pytest
import torch
from datasets import Dataset, Image
from tiny_runs import records
from transformers import Trainer, TrainingArguments

from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.training.collator import RegionCollator
from sca_hf.training.draws import SeededDataset


def trainer(model, processor, folder, dataset, **options):
    settings = dict(
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        learning_rate=3e-3,
        max_steps=10,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    extra = {name: options.pop(name) for name in ("compute_metrics",) if name in options}
    return Trainer(
        model,
        TrainingArguments(str(folder), **(settings | options)),
        data_collator=RegionCollator(processor, prompt_probabilities={"box": 1}),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=processor,
        **extra,
    )


@pytest.fixture(params=["list", "datasets"])
def dataset(request):
    rows = records()
    return rows if request.param == "list" else Dataset.from_list(rows).cast_column("image", Image())


def test_it_trains_and_reports_the_evaluation_loss(model, processor, tmp_path, dataset):
    run = trainer(model, processor, tmp_path, dataset, eval_strategy="steps", eval_steps=5)
    before = run.evaluate()["eval_loss"]
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    run.train()
    assert run.evaluate()["eval_loss"] < before
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_an_evaluation_gathers_logits_and_labels_only(model, processor, tmp_path):
    seen = []

    def look(prediction):
        seen.append(prediction)
        return {"seen": 1.0}

    # Captions are as long as the longest of their batch, so batches cannot be one array.
    options = dict(eval_do_concat_batches=False, compute_metrics=look)
    metrics = trainer(model, processor, tmp_path, records(4), **options).evaluate()
    assert metrics["eval_seen"] == 1.0 and metrics["eval_loss"] > 0
    logits, labels = seen[0].predictions, seen[0].label_ids
    assert [x.shape[:3] for x in logits] == [x.shape for x in labels]
    assert all(x.ndim == 4 for x in logits), "one array a batch: logits, no embeddings beside them"


def test_its_loss_counts_every_token_of_the_accumulated_batches(model, processor, tmp_path):
    run = trainer(model, processor, tmp_path, records(4))
    batches = [run.data_collator([record]) for record in records(4)]
    items = run._get_num_items_in_batch(batches, torch.device("cpu"))
    assert items == sum((batch["labels"] != -100).sum() for batch in batches)
    assert run.model_accepts_loss_kwargs and not run._loss_shifts_labels


def test_labels_are_smoothed_once(model, processor, tmp_path):
    batch = RegionCollator(processor, training=False)(records(2))
    assert model.config.label_smoothing == 0.1
    own = trainer(model, processor, tmp_path, records(2)).compute_loss(model, dict(batch))
    theirs = trainer(model, processor, tmp_path, records(2), label_smoothing_factor=0.1)
    torch.testing.assert_close(theirs.compute_loss(model, dict(batch)), own)


@pytest.mark.parametrize("include_base_models", [True, False], ids=["whole", "mixer only"])
def test_a_resumed_run_ends_where_an_unbroken_one_does(make_model, processor, tmp_path, include_base_models):
    make_model().save_pretrained(tmp_path / "start")

    def start():
        model = ScaForConditionalGeneration.from_pretrained(tmp_path / "start")
        model.include_base_models = include_base_models
        return model

    options = dict(save_strategy="steps", save_steps=3, max_steps=6, lr_scheduler_type="linear")
    unbroken = start()
    trainer(unbroken, processor, tmp_path / "run", SeededDataset(records(), seed=0), **options).train()
    resumed = start()
    trainer(resumed, processor, tmp_path / "run", SeededDataset(records(), seed=0), **options).train(
        tmp_path / "run" / "checkpoint-3"
    )
    for (name, found), expected in zip(resumed.named_parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(found, expected), name
