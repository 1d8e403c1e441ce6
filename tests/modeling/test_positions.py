"""A caption that would leave the language model's table of positions is refused, with the numbers."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sca_hf import ScaForConditionalGeneration
from sca_hf.modeling.generation_sca import position_limit
from sca_hf.testing import VOCABULARY_SIZE, tiny_image


PREFIX, POSITIONS = 14, 40
_SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
_OLD = dict(n_embd=32, n_layer=2, n_head=4)
_DECODER = dict(
    d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, is_decoder=True, pad_token_id=0
)
# Families by what limits them, each with a field of its own name for it.
LIMITED = {
    "gpt2": dict(_OLD, n_positions=40),
    "gpt_bigcode": dict(_OLD, n_positions=40),
    "gptj": dict(_OLD, n_positions=40, rotary_dim=4),
    "codegen": dict(_OLD, n_positions=40, rotary_dim=4),
    "gpt_neo": dict(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]], max_position_embeddings=40
    ),
    "opt": dict(_SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=40),
    "biogpt": dict(_SMALL, max_position_embeddings=40),
    "mpt": dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=40),
    "bart": dict(_DECODER, max_position_embeddings=40),
    "marian": dict(_DECODER, max_position_embeddings=40),
    "whisper": dict(_DECODER, max_target_positions=40, bos_token_id=1, eos_token_id=2),
    "bert": dict(_SMALL, is_decoder=True, max_position_embeddings=40),
    "roformer": dict(_SMALL, is_decoder=True, max_position_embeddings=40),
    # Positions of RoBERTa begin behind its padding id, 1.
    "roberta": dict(_SMALL, is_decoder=True, max_position_embeddings=42),
}
UNLIMITED = {
    "llama": dict(_SMALL, max_position_embeddings=40),
    "gpt_neox": dict(_SMALL, max_position_embeddings=40),
    "phi": dict(_SMALL, max_position_embeddings=40),
    "bloom": dict(hidden_size=32, n_layer=2, n_head=4),
    "falcon": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, max_position_embeddings=40),
    "xglm": dict(d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=40),
    "mamba": dict(hidden_size=32, num_hidden_layers=2),
    "rwkv": dict(hidden_size=32, num_hidden_layers=2, context_length=40),
}


def language_model(family, fields):
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY_SIZE, **fields)
    return AutoModelForCausalLM.from_config(config).eval()


def say(model, new_tokens):
    """The ids of as many tokens as asked for."""
    width = model.get_input_embeddings().weight.shape[1]
    embeds = torch.randn(1, PREFIX, width)
    mask = torch.ones(1, PREFIX, dtype=torch.long)
    settings = dict(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return model.generate(inputs_embeds=embeds, attention_mask=mask, **settings)


@pytest.mark.parametrize("family", LIMITED)
def test_the_limit_is_where_the_language_model_fails(family):
    model = language_model(family, LIMITED[family])
    assert position_limit(model) == POSITIONS
    assert say(model, POSITIONS - PREFIX).shape[1] == POSITIONS - PREFIX
    with pytest.raises((IndexError, RuntimeError)):
        say(model, 60)


@pytest.mark.parametrize("family", UNLIMITED)
def test_what_computes_its_positions_has_no_limit(family):
    model = language_model(family, UNLIMITED[family])
    assert position_limit(model) is None
    assert say(model, 60).shape[1] == 60


@pytest.fixture
def inputs(processor):
    return processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40]]], return_tensors="pt")


@pytest.fixture
def short(make_model):
    return make_model("gpt2", text_config=dict(n_positions=POSITIONS))


NUMBERS = r"prefix of 14 vectors and 27 tokens \({}\) need 41 positions.*\(gpt2\) has 40: at most 26 tokens fit"


def test_generate_refuses_with_the_numbers(short, inputs):
    settings = dict(min_new_tokens=26, pad_token_id=0)
    assert short.generate(**inputs, max_new_tokens=26, **settings).sequences.shape[-1] == 26
    with pytest.raises(ValueError, match=NUMBERS.format("max_new_tokens")):
        short.generate(**inputs, max_new_tokens=27)
    short.generation_config.max_new_tokens = 27
    with pytest.raises(ValueError, match=NUMBERS.format("max_new_tokens")):
        short.generate(**inputs)


def test_forward_refuses_with_the_numbers(short, inputs):
    ids = torch.ones(1, 1, 26, dtype=torch.long)
    assert short(**inputs, input_ids=ids).logits.shape[2] == 26
    with pytest.raises(ValueError, match=NUMBERS.format("input_ids")):
        short(**inputs, input_ids=torch.ones(1, 1, 27, dtype=torch.long))


def test_the_default_length_is_checked_too(make_model, inputs):
    with pytest.raises(ValueError, match=r"need 34 positions, .* has 20: at most 6 tokens fit"):
        make_model("gpt2", text_config=dict(n_positions=20)).generate(**inputs)
    with pytest.raises(ValueError, match="has 10: at most 0 tokens fit"):
        make_model("gpt2", text_config=dict(n_positions=10)).generate(**inputs, max_new_tokens=1)


def test_nothing_is_computed_before_it_is_refused(short, inputs, monkeypatch):
    monkeypatch.setattr(type(short), "encode_images", lambda *args: pytest.fail("the image was encoded"))
    with pytest.raises(ValueError, match="positions"):
        short.generate(**inputs, max_new_tokens=200)


def test_rotary_models_go_on(make_model, inputs):
    model = make_model("smollm", text_config=dict(max_position_embeddings=20))
    outputs = model.generate(**inputs, max_new_tokens=30, min_new_tokens=30, pad_token_id=0)
    assert outputs.sequences.shape[-1] == 30


def test_adapters_around_the_table_do_not_hide_it(short):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["wpe", "c_attn"], r=2)
    short.language_model = peft.get_peft_model(short.language_model, config)
    assert isinstance(short, ScaForConditionalGeneration)
    assert position_limit(short.language_model) == POSITIONS
