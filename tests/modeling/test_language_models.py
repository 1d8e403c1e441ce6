"""Every language model family we name: it trains and speaks behind the mixer exactly as it does alone.

Each is the library's own configuration class at a tiny size, with its head tied to its embeddings and not.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.testing import IMAGE_SIZE, TEXT_CONFIGS, VOCABULARY_SIZE, tiny_image, tiny_text_config, tiny_tokenizer


VARIANTS = [(family, tied) for family in TEXT_CONFIGS for tied in (True, False)]
every_variant = pytest.mark.parametrize(
    ("family", "tied"), VARIANTS, ids=[f"{family}-{'tied' if tied else 'untied'}" for family, tied in VARIANTS]
)
REGIONS = [(image, region) for image in range(2) for region in range(3)]
SEARCHES = {
    "greedy": dict(num_beams=1),
    "beams": dict(num_beams=3),
}


def build(make_model, family, tied):
    return make_model(family, text_config=dict(tie_word_embeddings=tied))


def prompts():
    """Two images of three boxes each."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(2, 3, 2, 2, generator=generator) * IMAGE_SIZE
    boxes = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1)
    return dict(pixel_values=torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator), input_boxes=boxes)


def captions():
    """Ids of captions of 1 to 7 tokens, right-padded, as the processor makes them."""
    lengths = torch.tensor([[3, 7, 1], [6, 2, 7]])
    ids = torch.randint(4, VOCABULARY_SIZE, (2, 3, 7), generator=torch.Generator().manual_seed(2))
    real = torch.arange(7) < lengths[..., None]
    return dict(input_ids=ids.where(real, 0), attention_mask=real.long(), labels=ids.where(real, torch.tensor(-100)))


def alone(model):
    """The language model without SCA around it, rebuilt from its configuration and weights."""
    config = copy.deepcopy(model.config.text_config)
    language_model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    language_model.load_state_dict(model.language_model.state_dict())
    return language_model


@torch.no_grad()
def logits_alone(language_model, prefix, ids):
    """Logits (T, V) that predict each of `ids` (T,) behind `prefix` (L, D), by a plain unbatched forward."""
    embeds = torch.cat([prefix, language_model.get_input_embeddings()(ids)])
    return language_model(inputs_embeds=embeds[None]).logits[0, len(prefix) - 1 : -1]


def choose_ends(model, options):
    """Two end tokens, one of which ends some caption early, and after its first token where any does so."""
    free = model.generate(**prompts(), eos_token_id=None, output_masks=False, **options).sequences.flatten(0, 1)
    chosen = None
    for token in dict.fromkeys(free[:, 1:-1].flatten().tolist()):
        ended = model.generate(**prompts(), eos_token_id=[1, token], pad_token_id=0, output_masks=False, **options)
        lengths = {end_of(caption, [1, token]) for caption in ended.sequences.flatten(0, 1)}
        if len(lengths & set(range(2, 20))):
            return [1, token]
        if len(lengths & set(range(1, 20))):
            chosen = [1, token]
    assert chosen, "no caption ends, whatever the end token"
    return chosen


def end_of(caption, ends):
    """Number of tokens up to and including the first end token."""
    found = torch.isin(caption, torch.tensor(ends)).nonzero()
    return int(found[0]) + 1 if len(found) else len(caption)


@every_variant
def test_loss_and_logits_are_those_of_the_language_model_alone(make_model, family, tied):
    model, text = build(make_model, family, tied), captions()
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    outputs = model(**prompts(), **text)
    language_model, total = alone(model), 0.0
    for image, region in REGIONS:
        length = int(text["attention_mask"][image, region].sum())
        ids = text["input_ids"][image, region, :length]
        logits = logits_alone(language_model, outputs.prefix_embeds[image, region, 0], ids)
        torch.testing.assert_close(outputs.logits[image, region, :length], logits, atol=1e-5, rtol=1e-5)
        logs = logits.log_softmax(dim=-1)
        total -= 0.9 * logs.gather(1, ids[:, None]).sum() + 0.1 * logs.mean(dim=-1).sum()
    assert outputs.loss.isfinite()
    torch.testing.assert_close(outputs.loss, total / text["attention_mask"].sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
@every_variant
def test_captions_and_their_scores_are_those_of_the_language_model_alone(make_model, family, tied, search):
    model = build(make_model, family, tied)
    ends = choose_ends(model, SEARCHES[search])
    outputs = model.generate(**prompts(), eos_token_id=ends, pad_token_id=0, **SEARCHES[search])
    prefixes = model(**prompts(), input_ids=torch.zeros(2, 3, 1, dtype=torch.long)).prefix_embeds
    language_model, ended = alone(model), 0
    for image, region in REGIONS:
        prefix, caption = prefixes[image, region, 0], outputs.sequences[image, region]
        expected = language_model.generate(
            inputs_embeds=prefix[None], max_new_tokens=20, eos_token_id=ends, pad_token_id=0, **SEARCHES[search]
        )[0]
        assert caption[: len(expected)].tolist() == expected.tolist()
        length = end_of(caption, ends)
        assert not caption[length:].any(), "after the end token only padding may follow"
        ended += length < 20
        logs = logits_alone(language_model, prefix, caption[:length]).log_softmax(dim=-1)
        score = logs.gather(1, caption[:length, None]).mean()
        torch.testing.assert_close(outputs.caption_scores[image, region], score, atol=1e-4, rtol=1e-4)
    assert ended


def test_sampled_captions_are_scored_by_the_same_definition(make_model):
    model, ends = make_model("phi2"), [1, 2]
    options = dict(do_sample=True, temperature=0.7, top_k=5, num_return_sequences=3, eos_token_id=ends, pad_token_id=0)
    outputs = model.generate(**prompts(), **options)
    assert outputs.sequences.shape[:3] == (2, 3, 3)
    prefixes = model(**prompts(), input_ids=torch.zeros(2, 3, 1, dtype=torch.long)).prefix_embeds
    for image, region in REGIONS:
        for caption, score in zip(
            outputs.sequences[image, region], outputs.caption_scores[image, region], strict=True
        ):
            caption = caption[: end_of(caption, ends)]
            logs = logits_alone(alone(model), prefixes[image, region, 0], caption).log_softmax(dim=-1)
            torch.testing.assert_close(score, logs.gather(1, caption[:, None]).mean(), atol=1e-4, rtol=1e-4)


def test_a_generation_config_is_as_good_as_keywords(model):
    expected = model.generate(**prompts(), num_beams=3)
    found = model.generate(**prompts(), generation_config=GenerationConfig(num_beams=3))
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.caption_scores, expected.caption_scores)


def test_no_step_looks_for_padding(model, monkeypatch):
    """GPT-2 does, which waits for the device and warns, where its configuration has the id the Trainer put there."""
    config = model.language_model.config
    assert config.pad_token_id == 0
    monkeypatch.setattr(torch.Tensor, "__contains__", lambda tensor, value: pytest.fail("a step looked for padding"))
    assert model.generate(**prompts()).sequences.shape[:2] == (2, 3)
    assert config.pad_token_id == 0


RELOAD = """
import sys, torch
from sca_hf import ScaForConditionalGeneration
folder = sys.argv[1]
job = torch.load(f"{folder}/job.pt")
results = {}
for name in job["names"]:
    model = ScaForConditionalGeneration.from_pretrained(f"{folder}/{name}")
    results[name] = dict(
        greedy=model.generate(**job["prompts"], output_masks=False).sequences,
        beams=model.generate(**job["prompts"], output_masks=False, num_beams=3).sequences,
        logits=model(**job["prompts"], **job["captions"]).logits.detach(),
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        ends=model.generation_config.eos_token_id,
    )
torch.save(results, f"{folder}/results.pt")
"""


def test_saved_and_loaded_in_a_new_process_all_say_the_same(make_model, tmp_path):
    expected = {}
    for family, tied in VARIANTS:
        model, name = build(make_model, family, tied), f"{family}-{tied}"
        model.generation_config.eos_token_id = choose_ends(model, SEARCHES["greedy"])
        model.generation_config.pad_token_id = 0
        model.save_pretrained(tmp_path / name)
        expected[name] = dict(
            greedy=model.generate(**prompts(), output_masks=False).sequences,
            beams=model.generate(**prompts(), output_masks=False, num_beams=3).sequences,
            logits=model(**prompts(), **captions()).logits.detach(),
            tied=tied,
            ends=model.generation_config.eos_token_id,
        )
    job = dict(names=list(expected), prompts=prompts(), captions=captions())
    torch.save(job, tmp_path / "job.pt")
    subprocess.run([sys.executable, "-c", RELOAD, str(tmp_path)], check=True, env=dict(os.environ))
    results = torch.load(tmp_path / "results.pt")
    for name, wanted in expected.items():
        for kind in ("greedy", "beams", "tied", "ends"):
            found = results[name][kind]
            assert torch.equal(found, wanted[kind]) if kind in SEARCHES else found == wanted[kind], (name, kind)
        torch.testing.assert_close(results[name]["logits"], wanted["logits"], atol=1e-5, rtol=1e-5, msg=name)


TOKENIZERS = {
    "pads left": (dict(), dict(padding_side="left")),
    "no unknown token": (dict(unk_token=None), dict()),
    "no padding token": (dict(pad_token=None), dict(padding_side="left")),
    "only an end token": (dict(pad_token=None, unk_token=None, bos_token=None), dict()),
}
TEXTS = [["a plain blue triangle", "two green apples on a wooden table"], ["a man"]]
BOXES = [[[5, 5, 30, 40], [20, 10, 70, 50]], [[1, 2, 50, 50]]]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_changes_neither_the_loss_nor_the_captions(make_model, tokenizer, kind):
    missing, settings = TOKENIZERS[kind]
    model = make_model("llama3")
    images = [tiny_image(0), tiny_image(1)]
    losses, texts = [], []
    for special in (tiny_tokenizer(), tiny_tokenizer(**missing)):
        for name, value in settings.items() if losses else ():
            setattr(special, name, value)
        inputs = ScaProcessor.from_config(model.config, special)(images, input_boxes=BOXES, captions=TEXTS)
        labels = inputs["labels"]
        assert (labels[..., 0] != -100).equal(inputs["region_mask"]), "captions begin at the first position"
        losses.append(model(**inputs).loss)
        generated = model.generate(**inputs, eos_token_id=special.eos_token_id, pad_token_id=special.pad_token_id)
        texts.append(generated.sequences[generated.region_mask].tolist())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=1e-6)
    assert texts[1] == texts[0]


def test_the_language_models_own_generation_config_travels(make_model, tmp_path):
    language_model = AutoModelForCausalLM.from_config(tiny_text_config("qwen3"))
    language_model.generation_config = GenerationConfig(
        eos_token_id=[2, 7, 9], pad_token_id=5, bos_token_id=1, repetition_penalty=1.3, max_length=64
    )
    language_model.save_pretrained(tmp_path / "text")
    make_model().sam.save_pretrained(tmp_path / "sam")
    model = ScaForConditionalGeneration.from_sam_text_pretrained(tmp_path / "sam", tmp_path / "text")
    model.save_pretrained(tmp_path / "sca")
    for found in (model, ScaForConditionalGeneration.from_pretrained(tmp_path / "sca")):
        config = found.generation_config
        assert config.eos_token_id == [2, 7, 9]
        assert (config.pad_token_id, config.repetition_penalty) == (5, 1.3)
        assert (config.max_length, config.max_new_tokens) == (None, 20)
