"""The listener in the loss: what it is, that any split of a step is one loss, and that it teaches to tell apart."""

import pytest
import torch
from tiny_runs import parameters, records, trainer

from sca_hf.testing import CAPTIONS
from sca_hf.training.agreement import agreement_loss
from sca_hf.training.collator import RegionCollator


def test_it_is_what_the_listener_makes_of_the_true_captions(model, processor):
    batch = RegionCollator(processor, training=False)(records(4))
    heard = model.listener_scores(**batch)
    own = heard.diagonal(dim1=1, dim2=2)
    tokens = (batch["labels"] != -100).sum(2)
    expected = -(tokens * own.clamp(min=1e-30).log()).sum() / tokens.sum()
    output = model(**batch)
    found = agreement_loss(model.language_model, output.prefix_embeds, batch["labels"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    larger = agreement_loss(model.language_model, output.prefix_embeds, batch["labels"], 2 * tokens.sum())
    torch.testing.assert_close(larger, expected / 2, atol=1e-5, rtol=1e-5)
    found.backward()
    assert all(p.grad is not None for p in model.mixer.parameters() if p.requires_grad)


def test_the_head_that_a_caption_fits_best_counts(make_model, processor):
    model = make_model(mixer_config=dict(num_caption_heads=2))
    batch = RegionCollator(processor, training=False)(records(4))
    own, tokens = model.listener_scores(**batch).diagonal(dim1=1, dim2=2), (batch["labels"] != -100).sum(2)
    found = agreement_loss(model.language_model, model(**batch).prefix_embeds, batch["labels"])
    expected = -(tokens * own.clamp(min=1e-30).log()).sum() / tokens.sum()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_regions_with_one_caption_are_not_told_apart(model, processor):
    twins = records(1)
    for region in twins[0]["regions"][:2]:
        region["captions"] = [CAPTIONS[0]]
    batch = RegionCollator(processor, training=False)(twins)
    chance, prefixes = model.listener_scores(**batch)[0], model(**batch).prefix_embeds
    tokens = (batch["labels"][0] != -100).sum(1)
    expected = tokens[:2].sum() * (chance[0, 0] + chance[1, 0]).log() + tokens[2] * chance[2, 2].log()
    found = agreement_loss(model.language_model, prefixes, batch["labels"])
    torch.testing.assert_close(found, -expected / tokens.sum(), atol=1e-5, rtol=1e-5)
    for region in twins[0]["regions"]:
        region["captions"] = [CAPTIONS[0]]
    batch = RegionCollator(processor, training=False)(twins)
    nothing = agreement_loss(model.language_model, model(**batch).prefix_embeds, batch["labels"])
    assert nothing == 0
    nothing.backward()


def test_accumulated_steps_are_large_steps(make_model, processor, tmp_path):
    ends = []
    for size, steps in ((4, 1), (1, 4)):
        model = make_model(text_config=dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
        run = trainer(
            model,
            processor,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            max_grad_norm=0.0,
            agreement_weight=1.0,
            max_steps=2,
        )
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        ends.append((parameters(run.model.mixer), losses))
    assert ends[0][1] == pytest.approx(ends[1][1], abs=1e-5)
    for name, value in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], value, atol=1e-6, rtol=0)


def test_what_it_alone_teaches_is_to_tell_regions_apart(model, processor):
    batch = RegionCollator(processor, training=False)(records(2))
    optimizer = torch.optim.Adam(model.mixer.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = agreement_loss(model.language_model, model(**batch).prefix_embeds, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_loss_of_an_evaluation_is_without_it(make_model, processor, tmp_path):
    losses = []
    for weight in (0.0, 3.0):
        run = trainer(make_model(), processor, tmp_path, agreement_weight=weight)
        losses.append((run.evaluate()["eval_loss"], run.train().training_loss))
    assert losses[0][0] == losses[1][0] and losses[1][1] > losses[0][1] + 1


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_cannot_be_meant_is_refused(model, processor, tmp_path, weight):
    with pytest.raises(ValueError, match="agreement_weight is"):
        trainer(model, processor, tmp_path, agreement_weight=weight)
