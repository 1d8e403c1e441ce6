"""Captions scored for regions: the language model's own log-likelihood, of all pairs of an image in one encoding."""

import pytest
import torch
from torch import nn

from sca_hf.modeling import listener_sca
from sca_hf.modeling.listener_sca import listener_scores, pair_log_likelihoods
from sca_hf.testing import CAPTIONS, TEXT_CONFIGS, tiny_image
from sca_hf.training import add_second_look


@pytest.fixture
def batch(processor):
    """Two pictures of three and two regions with a caption each."""
    boxes = [[[2, 3, 30, 40], [20, 10, 60, 50], [5, 5, 60, 58]], [[0, 0, 20, 20], [30, 30, 64, 59]]]
    captions = [list(CAPTIONS[:3]), [CAPTIONS[3], CAPTIONS[0]]]
    return processor([tiny_image(0), tiny_image(1)], input_boxes=boxes, captions=captions)


def without_text(batch):
    return {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask", "labels")}


def score_alone(model, prefix, ids):
    """Log-probability of ids (T,) behind a prefix (L, D), by a plain unbatched forward."""
    embeds = torch.cat([prefix, model.get_input_embeddings()(ids)])
    logits = model.language_model(inputs_embeds=embeds[None]).logits[0, len(prefix) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, ids[:, None]).sum()


@pytest.mark.parametrize("family", TEXT_CONFIGS)
@torch.no_grad()
def test_all_pairs_are_the_language_models_own_log_likelihoods(make_model, batch, family):
    model = make_model(family)
    heard = model.score_captions(**batch)
    prefixes = model(**batch).prefix_embeds
    assert heard.log_likelihoods.shape == (2, 3, 3)
    for image, count in enumerate((3, 2)):
        for region in range(count):
            for caption in range(count):
                ids = batch["input_ids"][image, caption][batch["labels"][image, caption] != -100]
                expected = score_alone(model, prefixes[image, region, 0], ids)
                torch.testing.assert_close(
                    heard.log_likelihoods[image, region, caption], expected, atol=2e-5, rtol=1e-5
                )
    assert not heard.log_likelihoods[1, 2].any() and not heard.log_likelihoods[1, :, 2].any()
    assert heard.num_tokens.tolist() == (batch["labels"] != -100).sum(-1).tolist()


def test_families_whose_attention_cannot_follow_a_tree_read_caption_by_caption(make_model):
    # A window of 16 tokens ends within prefix and caption.
    reads = {family: listener_sca._reads_trees(make_model(family).language_model, 34) for family in TEXT_CONFIGS}
    assert {family for family, tree in reads.items() if not tree} == {"zephyr", "gemma3"}


def test_own_captions_sum_to_the_training_loss(make_model, batch):
    model = make_model(label_smoothing=0.0)
    own = model.score_captions(**batch, pairs="own")
    assert own.log_likelihoods.shape == (2, 3)
    loss = -own.log_likelihoods.sum() / own.num_tokens.sum()
    torch.testing.assert_close(loss, model(**batch).loss.detach(), atol=1e-6, rtol=1e-6)
    together = model.score_captions(**batch).log_likelihoods
    torch.testing.assert_close(own.log_likelihoods, together.diagonal(dim1=1, dim2=2), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "search", [{}, dict(num_beams=3, num_return_sequences=2), dict(do_sample=True, num_return_sequences=3)], ids=str
)
def test_what_generate_said_gets_the_scores_that_generate_gave(model, batch, search):
    inputs = without_text(batch)
    # Ends early here and there, and is cut elsewhere.
    said = model.generate(**inputs, **search, eos_token_id=[1, 17], max_new_tokens=9, output_caption_scores=True)
    model.generation_config.eos_token_id = [1, 17]
    own = model.score_captions(**inputs, input_ids=said.sequences, pairs="own")
    means = own.log_likelihoods / own.num_tokens.clamp(min=1)
    torch.testing.assert_close(means[batch["region_mask"]], said.caption_scores[batch["region_mask"]])
    if search:
        n = said.sequences.shape[2]
        together = model.score_captions(**inputs, input_ids=said.sequences).log_likelihoods
        torch.testing.assert_close(together[0, 1, n : 2 * n], own.log_likelihoods[0, 1], atol=1e-4, rtol=1e-5)


def test_the_picture_is_encoded_and_the_regions_are_mixed_once_whatever_the_chunks(model, batch, monkeypatch):
    whole = model.score_captions(**batch)
    calls = []
    for part in (model.sam.vision_encoder, model.mixer):
        part.register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__))
    rows = []
    model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    monkeypatch.setattr(listener_sca, "_TREE_TOKENS", 12)
    parts = model.score_captions(**batch, language_model_batch_size=2, region_chunk_size=8)
    assert len(calls) == 2 and max(rows) == 2 and len(rows) > 3
    torch.testing.assert_close(parts.log_likelihoods, whole.log_likelihoods, atol=1e-4, rtol=1e-5)


def test_each_picture_alone_gets_the_same_scores(model, processor, batch):
    together = model.score_captions(**batch)
    alone = processor(
        tiny_image(1), input_boxes=[[[0, 0, 20, 20], [30, 30, 64, 59]]], captions=[[CAPTIONS[3], CAPTIONS[0]]]
    )
    scores = model.score_captions(**alone).log_likelihoods
    torch.testing.assert_close(scores[0], together.log_likelihoods[1, :2, :2], atol=1e-4, rtol=1e-5)


def test_any_number_of_captions_and_tasks_and_encodings(model, processor, batch):
    inputs = without_text(batch)
    texts = processor.caption_inputs([[CAPTIONS[0]], [CAPTIONS[1], CAPTIONS[2], CAPTIONS[1], CAPTIONS[4]]])
    heard = model.score_captions(**inputs, **texts)
    assert heard.log_likelihoods.shape == (2, 3, 4)
    assert torch.equal(heard.log_likelihoods[1, :, 0], heard.log_likelihoods[1, :, 2])
    encoding = model.encode_images(inputs.pop("pixel_values"))
    again = model.score_captions(**encoding.as_inputs(), **inputs, **texts)
    torch.testing.assert_close(again.log_likelihoods, heard.log_likelihoods)
    named = model.score_captions(
        **encoding.as_inputs(), **inputs | {"task_ids": torch.zeros_like(inputs["task_ids"])}, **texts
    )
    assert not torch.allclose(named.log_likelihoods[0], heard.log_likelihoods[0])


def test_listener_scores_are_probabilities_of_regions(model, batch):
    heard = model.score_captions(**batch)
    chance = listener_scores(heard.log_likelihoods, heard.region_mask)
    torch.testing.assert_close(chance.sum(1)[0], torch.ones(3))
    assert not chance[1, 2].any()
    torch.testing.assert_close(chance[0], heard.log_likelihoods[0].softmax(0))
    assert torch.equal(chance, model.listener_scores(**batch))


def test_the_head_that_a_caption_fits_best_counts(make_model, batch):
    model = make_model(mixer_config=dict(num_caption_heads=2))
    heard = model.score_captions(**batch)
    assert heard.log_likelihoods.shape == (2, 3, 2, 3)
    assert model.score_captions(**batch, pairs="own").log_likelihoods.shape == (2, 3, 2)
    best = heard.log_likelihoods[0].amax(1).softmax(0)
    torch.testing.assert_close(listener_scores(heard.log_likelihoods, heard.region_mask)[0], best)


def test_a_second_look_and_a_model_in_training_change_nothing(model, batch):
    before = model.score_captions(**batch).log_likelihoods
    add_second_look(model, size=32)
    torch.testing.assert_close(model.train().score_captions(**batch).log_likelihoods, before)


def test_gradients_of_pairs_reach_the_prefixes(model):
    prefixes = nn.Parameter(torch.randn(2, 3, 32))
    scores = pair_log_likelihoods(model.language_model, prefixes, [([0, 1], [([5, 6, 1], 0), ([5, 7, 8, 1], 1)])], 2)
    scores.sum().backward()
    assert prefixes.grad.abs().amin(dim=(1, 2)).shape == (2,) and prefixes.grad.flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(pairs="some"), r"pairs is 'some', expected 'all' or 'own'"),
        (dict(input_ids=torch.ones(2, 3, 0, dtype=torch.long)), r"must be \(B, J, T\)"),
        (dict(input_ids=torch.ones(1, 3, 4, dtype=torch.long), labels=None), r"do not fit"),
        (
            dict(labels=torch.full((2, 3, 4), -100), input_ids=torch.ones(2, 3, 4).long()),
            "all of input_ids is padding",
        ),
        (dict(labels=torch.tensor([[[-100, 5]]]), input_ids=torch.ones(1, 1, 2).long()), "padded on the right"),
        (dict(labels=torch.ones(2, 3, 4)), r"labels \(2, 3, 4\) and input_ids .* differ in shape"),
        (dict(num_beams=3), r"score_captions\(\) got unknown arguments \['num_beams'\]"),
    ],
)
def test_errors_say_what_was_wrong(model, batch, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model.score_captions(**{**batch, "attention_mask": None, **change})


def test_captions_that_the_language_model_has_no_positions_for_are_refused(model, batch):
    inputs = without_text(batch)
    with pytest.raises(ValueError, match="positions"):
        model.score_captions(**inputs, input_ids=torch.full((2, 3, 200), 5))


@pytest.mark.parametrize("captions", [[], [[], []], [["", "a"]], [[None]], [3]])
def test_caption_inputs_takes_texts_only(processor, captions):
    with pytest.raises(ValueError, match="captions must be texts"):
        processor.caption_inputs(captions)


def test_caption_inputs_are_what_a_processor_learns_from(processor, batch):
    inputs = processor.caption_inputs([list(CAPTIONS[:3]), [CAPTIONS[3], CAPTIONS[0]]])
    assert all(torch.equal(inputs[name], batch[name]) for name in ("input_ids", "attention_mask", "labels"))
    one = processor.caption_inputs(CAPTIONS[0])["labels"]
    assert one.shape[:2] == (1, 1) and one[0, 0].tolist() == inputs["labels"][0, 0][: one.shape[2]].tolist()


def test_agreement_is_what_the_listener_makes_of_the_models_own_captions(model, processor, batch):
    inputs = without_text(batch)
    plain = model.generate(**inputs)
    said = model.generate(**inputs, output_agreements=True)
    assert plain.agreements is None and torch.equal(said.sequences, plain.sequences)
    expected = model.listener_scores(**inputs, input_ids=said.sequences).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(said.agreements, expected * batch["region_mask"], atol=1e-5, rtol=1e-4)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    records = processor.post_process_regions(said, *sizes)
    assert [one["agreement"] for one in records[1]] == said.agreements[1, :2].tolist()
    assert "agreement" not in processor.post_process_regions(plain, *sizes)[0][0]


@pytest.mark.parametrize("search", [dict(num_beams=4), dict(do_sample=True)], ids=str)
def test_reranking_takes_the_candidate_that_tells_its_region_apart(model, batch, search):
    inputs = without_text(batch)
    options = {**search, "num_return_sequences": 4, "max_new_tokens": 6, "output_caption_scores": True}
    torch.manual_seed(0)
    all_of_them = model.generate(**inputs, **options, output_agreements=True)
    torch.manual_seed(0)
    best = model.generate(**inputs, **options, rerank="listener")
    assert all_of_them.agreements.shape == (2, 3, 4) and best.sequences.shape[:2] == (2, 3) == best.agreements.shape
    quality = all_of_them.agreements.log() + listener_sca._FLUENCY * all_of_them.caption_scores
    chosen = quality.argmax(2)
    assert len(set(chosen[batch["region_mask"]].tolist())) > 1, "the first candidate always wins: nothing was chosen"
    for image, region in batch["region_mask"].nonzero().tolist():
        k = chosen[image, region]
        assert torch.equal(best.sequences[image, region], all_of_them.sequences[image, region, k])
        assert best.caption_scores[image, region] == all_of_them.caption_scores[image, region, k]
    ids = model.generate(**inputs, **search, num_return_sequences=4, rerank="listener", return_dict_in_generate=False)
    assert ids.shape[:2] == (2, 3)


def test_reranking_chooses_among_caption_heads_too(make_model, batch):
    model = make_model(mixer_config=dict(num_caption_heads=3))
    inputs = without_text(batch)
    assert model.generate(**inputs, output_agreements=True).agreements.shape == (2, 3, 3)
    assert model.generate(**inputs, rerank="listener").sequences.ndim == 3


def test_only_the_listener_reranks(model, batch):
    with pytest.raises(ValueError, match="rerank is 'best', expected 'listener' or None"):
        model.generate(**without_text(batch), rerank="best")
