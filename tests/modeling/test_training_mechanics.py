"""What training leans on: the loss of any split of a batch, gradients of the mixer alone, checkpointing."""

from collections import Counter

import pytest
import torch

from sca_hf.modeling.mixer_sca import ScaTwoWayLayer
from sca_hf.testing import IMAGE_SIZE, VOCABULARY_SIZE


# Every dropout that a family knows, so high that none could run unnoticed.
DROPOUTS = {
    "gpt2": dict(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5),
    "opt": dict(dropout=0.5, attention_dropout=0.5, layerdrop=0.5),
    "phi2": dict(resid_pdrop=0.5, embd_pdrop=0.5, attention_dropout=0.5),
    "smollm": dict(attention_dropout=0.5),
}


def batch(images=4, regions=3, length=6):
    """Boxes with captions of different lengths."""
    draw = torch.Generator().manual_seed(3)
    corners = torch.rand(images, regions, 2, 2, generator=draw) * IMAGE_SIZE
    ids = torch.randint(4, VOCABULARY_SIZE, (images, regions, length), generator=draw)
    real = torch.arange(length) < torch.randint(1, length + 1, (images, regions, 1), generator=draw)
    return dict(
        pixel_values=torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=draw),
        input_boxes=torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1),
        input_ids=ids,
        attention_mask=real.long(),
        labels=ids.where(real, -100),
        mask_labels=(torch.rand(images, regions, 32, 32, generator=draw) > 0.5).float(),
    )


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    scale = max(x.abs().max() for x in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance * scale, rtol=tolerance, msg=name)


@pytest.mark.parametrize(
    "overrides", [dict(), dict(mixer_config=dict(num_caption_heads=2))], ids=["one head", "two heads"]
)
def test_the_caption_loss_does_not_depend_on_how_a_batch_is_split(make_model, overrides):
    model, whole = make_model(**overrides).train(), batch()
    whole.pop("mask_labels")
    loss = model(**whole).loss
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    items, parts = (whole["labels"] != -100).sum(), 0.0
    for start, end in [(0, 1), (1, 4)]:
        part = model(**{name: x[start:end] for name, x in whole.items()}, num_items_in_batch=items).loss
        part.backward()
        parts += part.detach()
    torch.testing.assert_close(parts, loss.detach())
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("splits", [[(0, 1), (1, 2), (2, 3), (3, 4)], [(0, 1), (1, 4)]], ids=["singly", "unevenly"])
def test_the_mask_loss_does_not_depend_on_how_a_batch_is_split(make_model, splits):
    model, whole = make_model(mask_loss_weight=0.7, freeze_base_models=False), batch()  # unfrozen parts have dropout
    whole["mask_labels"][0, 1] = whole["mask_labels"][2] = float("nan")  # two images' masks are not all known
    loss = model(**whole).loss
    loss.backward()
    expected = gradients(model)
    assert any(name.startswith("sam.mask_decoder.output_hypernetworks") for name in expected)
    model.zero_grad()
    items, parts = (whole["labels"] != -100).sum(), 0.0
    for start, end in splits:
        part = model(**{name: x[start:end] for name, x in whole.items()}, num_items_in_batch=items).loss
        part.backward()
        parts += part.detach()
    torch.testing.assert_close(parts, loss.detach())
    assert_same(gradients(model), expected)
    captions = model(**{name: x for name, x in whole.items() if name != "mask_labels"}).loss
    assert loss > captions + 0.01


@pytest.mark.parametrize("sam_type", ["sam", "sam_hq"])
def test_three_masks_and_the_single_one_learn_whichever_is_asked_for(make_model, sam_type):
    model, inputs = make_model(sam_type=sam_type, mask_loss_weight=0.7, freeze_base_models=False).eval(), batch()
    text = {"labels": inputs.pop("labels"), "input_ids": inputs.pop("input_ids")}
    parts = {wanted: model(**inputs, multimask_output=wanted) for wanted in (True, False)}
    assert [len(part.iou_scores[0, 0]) for part in parts.values()] == [3, 1]
    model.train()
    for wanted, part in parts.items():
        model.zero_grad()
        outputs = model(**inputs, multimask_output=wanted)
        torch.testing.assert_close(outputs.loss, parts[True].loss + parts[False].loss)
        torch.testing.assert_close(outputs.pred_masks, part.pred_masks)
        outputs.loss.backward()
        heads = model.sam.mask_decoder.output_hypernetworks_mlps
        # Of the three only the best one of a region learns.
        assert heads[0].proj_out.weight.grad.abs().sum() > 0
        assert any(head.proj_out.weight.grad.abs().sum() > 0 for head in heads[1:])
    with pytest.raises(ValueError, match="mask_labels need masks"):
        model(**inputs, **text, output_masks=False)


def test_the_loss_is_the_first_output(model):
    inputs = batch()
    assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).loss)


def test_the_mixer_alone_is_trained(model):
    inputs = batch()
    inputs.pop("mask_labels")
    model.train()(**inputs).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    # The other task's tokens share a row table; keys' biases cancel in the softmax.
    mixer = {name for name, _ in model.named_parameters() if name.startswith("mixer.") and "k_proj.bias" not in name}
    assert {name for name in trained if "k_proj.bias" not in name} == mixer


@pytest.mark.parametrize("family", DROPOUTS)
def test_frozen_parts_run_without_dropout(make_model, family):
    model, inputs = make_model(family, text_config=DROPOUTS[family]), batch()
    expected = model(**inputs).loss
    model.train()
    # To rounding: in training the head reads fewer positions at once.
    torch.testing.assert_close(model(**inputs).loss, expected, atol=1e-6, rtol=1e-6)
    thawed = make_model(family, text_config=DROPOUTS[family], freeze_base_models=False).train()
    assert not torch.isclose(thawed(**inputs).loss, expected), "dropout would be noticed"


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", DROPOUTS)
def test_checkpointing_changes_neither_loss_nor_gradients_and_really_happens(
    make_model, family, reentrant, monkeypatch
):
    model, inputs = make_model(family, text_config=DROPOUTS[family]).train(), batch()
    loss = model(**inputs).loss
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    # After train(), where a loop of one's own may put it; the Trainer calls it before.
    model._set_gradient_checkpointing(
        True, lambda *args: torch.utils.checkpoint.checkpoint(*args, use_reentrant=reentrant)
    )
    runs = count_forwards(model)
    found = model(**inputs).loss
    once = dict(runs)
    found.backward()
    torch.testing.assert_close(found, loss)
    assert_same(gradients(model), expected)
    assert len(once) == 3 + 2, "three mixer layers, two layers of the language model"
    assert all(runs[layer] == 2 * once[layer] for layer in once), "each layer ran again for its gradients"
    model.eval()
    torch.testing.assert_close(model(**inputs).loss, loss)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("heads", [1, 2])
def test_in_training_the_head_reads_labelled_positions_only_and_nothing_else_changes(make_model, family, heads):
    extra = dict(final_logit_softcapping=3.0) if family == "gemma3" else {}
    model = make_model(family, mixer_config=dict(num_caption_heads=heads), text_config=extra)
    inputs, rows = batch(), []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: rows.append(out.shape[:-1].numel()))
    whole = model(**inputs)
    whole.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.train()
    found = model(**inputs)
    found.loss.backward()
    labelled = inputs["labels"] != -100
    assert rows == [heads * labelled.numel(), heads * int(labelled.sum())]
    torch.testing.assert_close(found.loss, whole.loss, atol=1e-6, rtol=1e-6)
    assert_same(gradients(model), expected)
    places = labelled if heads == 1 else labelled.unsqueeze(2).expand(-1, -1, heads, -1)
    torch.testing.assert_close(found.logits[places], whole.logits[places], atol=1e-5, rtol=1e-5)
    assert not found.logits[~places].any()


def count_forwards(model):
    """Runs of each checkpointed layer, kept up to date."""
    runs = Counter()
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) and m.training]
    layers = [m for m in layers if isinstance(m, ScaTwoWayLayer) or m in set(model.language_model.modules())]
    for layer in layers:
        inner = next(child for child in layer.modules() if not list(child.children()) and child is not layer)
        inner.register_forward_hook(lambda *_, layer=layer: runs.update([layer]))
    return runs
