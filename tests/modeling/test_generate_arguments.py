"""Arguments of `generate` are the library's: each is honored, or refused by its name with a sentence."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from sca_hf.testing import tiny_image


BOXES = [[[3, 3, 40, 40], [20, 10, 70, 50]], [[1, 1, 30, 30]]]


@pytest.fixture
def inputs(processor):
    return processor([tiny_image(0), tiny_image(1)], input_boxes=BOXES, return_tensors="pt")


def captions(outputs):
    """The ids of every real region, in order, to their padding."""
    rows = outputs.sequences[outputs.region_mask]
    return [row[row != 0].tolist() for row in rows]


def alone(processor):
    return processor(tiny_image(0), input_boxes=[[BOXES[0][0]]], return_tensors="pt")


def free(model):
    """The model without an end token, so that nothing but what is asked for ends a caption."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    return model


def cut(ids, stop, tokenizer):
    """Ids up to the first with which their text holds `stop`."""
    lengths = (length for length in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:length]))
    return ids[: next(lengths, len(ids))]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"language_model_batch_size": 1}], ids=str)
@pytest.mark.parametrize("padding", [0, 1])
def test_stop_strings_end_captions_and_scores(model, processor, inputs, options, padding):
    model, tokenizer = free(model), processor.tokenizer
    model.generation_config.pad_token_id = padding
    whole = captions(model.generate(**inputs, **options))
    stop = next(text for text in map(tokenizer.decode, whole[0][2:]) if text.isalnum())
    found = model.generate(**inputs, **options, stop_strings=[stop], tokenizer=tokenizer)
    rows = found.sequences[found.region_mask].tolist()
    short = [cut(row, stop, tokenizer) for row in rows]
    assert all(set(row[len(kept) :]) <= {padding} for row, kept in zip(rows, short, strict=True))
    if "num_beams" not in options:
        assert short == [cut(ids, stop, tokenizer) for ids in whole] and len(short[0]) < len(whole[0])
    # The score is that of the tokens that are left, as the language model gives them.
    ids = torch.tensor(short[0])[None, None]
    logits = model(**alone(processor), input_ids=ids).logits.log_softmax(dim=-1)
    expected = logits.gather(-1, ids[..., None]).mean()
    torch.testing.assert_close(found.caption_scores[0, 0], expected, atol=1e-5, rtol=1e-5)


class After(StoppingCriteria):
    """Stops every second row after some tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores, **kwargs):
        rows = torch.arange(len(input_ids)) % 2 == 0
        return rows & (input_ids.shape[1] >= self.tokens)


@pytest.mark.parametrize("end", [1, None])
@pytest.mark.parametrize("criteria", [[After(3)], StoppingCriteriaList([After(3), After(5)])], ids=["list", "class"])
def test_stopping_criteria_end_captions_with_an_end_token_and_without(model, inputs, criteria, end):
    whole = captions(free(model).generate(**inputs, eos_token_id=end))
    found = model.generate(**inputs, eos_token_id=end, stopping_criteria=criteria)
    assert captions(found) == [whole[0][:3], whole[1], whole[2][:3]]
    assert torch.isfinite(found.caption_scores).all()


class Ban(LogitsProcessor):
    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, self.tokens, -torch.inf)


@pytest.mark.parametrize("wrap", [list, LogitsProcessorList])
def test_logits_processors_are_asked(model, inputs, wrap):
    banned = torch.tensor(sorted({token for row in captions(free(model).generate(**inputs)) for token in row[:2]}))
    found = model.generate(**inputs, logits_processor=wrap([Ban(banned)]))
    assert not torch.isin(found.sequences[found.region_mask], banned).any()


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_allowed_tokens_are_asked_for_by_the_row_of_the_call(model, inputs, batch):
    rows = set()

    def allowed(row, ids):
        rows.add(row)
        return [10 + row]

    found = free(model).generate(**inputs, prefix_allowed_tokens_fn=allowed, language_model_batch_size=batch)
    assert captions(found) == [[10] * 20, [11] * 20, [12] * 20] and rows == {0, 1, 2}


def test_a_streamer_tells_one_region(model, processor, capsys):
    found = model.generate(**alone(processor), streamer=TextStreamer(processor.tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == processor.batch_decode(found)[0][0].strip() != ""


def test_a_streamer_is_refused_where_it_would_tell_parts(model, processor, inputs):
    with pytest.raises(ValueError, match="streamer supports one call"):
        model.generate(**inputs, streamer=TextStreamer(processor.tokenizer), language_model_batch_size=2)


def test_several_captions_of_a_region(model, inputs):
    assert model.generate(**inputs, num_beams=3, num_return_sequences=2).sequences.shape[:3] == (2, 2, 2)
    torch.manual_seed(0)
    sampled = model.generate(**inputs, do_sample=True, num_return_sequences=3)
    assert sampled.sequences.shape[:3] == sampled.caption_scores.shape == (2, 2, 3)


@pytest.mark.parametrize("name", ["pixel_values", "inputs"])
def test_the_library_calls_its_first_argument_inputs(model, inputs, name):
    pixels = inputs["pixel_values"]
    rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
    expected = model.generate(**inputs).sequences
    assert torch.equal(model.generate(pixels, **rest).sequences, expected)
    assert torch.equal(model.generate(pixels, GenerationConfig(), **rest).sequences, expected)
    assert torch.equal(model.generate(**{name: pixels}, **rest).sequences, expected)


def test_a_setting_that_is_none_is_not_set(model, inputs):
    expected = model.generate(**inputs).sequences
    nothing = dict(max_length=None, output_scores=None, streamer=None, stop_strings=None, assistant_model=None)
    assert torch.equal(model.generate(**inputs, max_new_tokens=None, **nothing).sequences, expected)
    neutral = dict(guidance_scale=1.0, encoder_repetition_penalty=1.0, use_cache=True, output_logits=False)
    assert torch.equal(model.generate(**inputs, **neutral).sequences, expected)


REFUSED = {
    "output_scores": (True, "caption_scores"),
    "output_logits": (True, "caption_scores"),
    "output_attentions": (True, "forward"),
    "output_hidden_states": (True, "forward"),
    "max_length": (3, "max_new_tokens"),
    "min_length": (3, "min_new_tokens"),
    "guidance_scale": (2.0, "prompt"),
    "prompt_lookup_num_tokens": (1, "assisted"),
    "assistant_early_exit": (1, "assisted"),
    "encoder_repetition_penalty": (1.5, "prompt"),
    "encoder_no_repeat_ngram_size": (2, "prompt"),
    "token_healing": (True, "prompt"),
    "forced_bos_token_id": (3, "prompt"),
    "use_cache": (False, "cache"),
    "cache_implementation": ("paged", "prompts"),
    "stop_strings": (["a"], "processor.tokenizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_a_meaning_here_are_refused_by_name(model, inputs, name):
    value, remedy = REFUSED[name]
    with pytest.raises(ValueError, match=f"{name}.*{remedy}"):
        model.generate(**inputs, **{name: value})
    with pytest.raises(ValueError, match=f"{name}.*{remedy}"):
        model.generate(**inputs, generation_config=GenerationConfig(**{name: value}))
    if name != "use_cache":
        setattr(model.generation_config, name, value)
        with pytest.raises(ValueError, match=f"{name}.*{remedy}"):
            model.generate(**inputs)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("assistant_model", "assisted generation"),
        ("assistant_tokenizer", "assisted generation"),
        ("negative_prompt_ids", "guidance"),
        ("custom_generate", "custom generation code"),
        ("trust_remote_code", "from_pretrained"),
    ],
)
def test_arguments_without_a_meaning_here_are_refused_by_name(model, inputs, name, reason):
    value = model.language_model if name == "assistant_model" else "something"
    with pytest.raises(ValueError, match=f"{name}=.*{reason}"):
        model.generate(**inputs, **{name: value})


@pytest.mark.parametrize("name", ["surprise", "past_key_values", "position_ids", "decoder_input_ids"])
def test_unknown_arguments_are_named(model, inputs, name):
    with pytest.raises(TypeError, match=name):
        model.generate(**inputs, **{name: torch.zeros(1)})


def test_a_length_beside_one_of_new_tokens_is_ignored_as_in_the_library(model, inputs):
    given = GenerationConfig(max_length=500, max_new_tokens=4)
    assert free(model).generate(**inputs, generation_config=given).sequences.shape[-1] == 4


def test_a_language_models_own_impossible_settings_are_left_behind(make_model):
    model = make_model()
    model.language_model.generation_config.update(min_length=3, output_scores=True, forced_bos_token_id=2)
    from sca_hf.modeling.generation_sca import caption_generation_config

    config = caption_generation_config(model.language_model)
    assert (config.min_length, config.output_scores, config.forced_bos_token_id) == (None, None, None)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_a_batch_that_was_not_unpacked_is_told_how(model, inputs, processor, call):
    run = model if call == "forward" else model.generate
    for batch in (inputs, dict(inputs)):
        with pytest.raises(TypeError, match=r"pixel_values must be a torch tensor, got .*\*\*inputs"):
            run(batch)
    arrays = processor(tiny_image(0), input_boxes=[[BOXES[0][0]]], return_tensors="np")
    assert isinstance(arrays["pixel_values"], np.ndarray)
    with pytest.raises(TypeError, match=r"got ndarray.*return_tensors='pt'"):
        run(**arrays)


def test_a_configuration_that_is_a_dictionary_is_refused(model, inputs):
    with pytest.raises(TypeError, match="generation_config must be a GenerationConfig, got dict"):
        model.generate(**inputs, generation_config={"num_beams": 2})


def test_the_library_moves_on_from_its_own_positions(model, inputs):
    """Third and later arguments of the library have other places there: by name only."""
    with pytest.raises(TypeError, match="positional"):
        model.generate(inputs["pixel_values"], GenerationConfig(), LogitsProcessorList())


def test_a_call_leaves_the_models_configuration_alone(model, inputs, processor):
    before = copy.deepcopy(model.generation_config.to_dict())
    model.generate(**inputs, stop_strings="a", tokenizer=processor.tokenizer, max_new_tokens=3)
    assert model.generation_config.to_dict() == before
