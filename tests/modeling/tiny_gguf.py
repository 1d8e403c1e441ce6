"""A tiny Llama as a GGUF file, written by the format's own package, with tied embeddings and its tokenizer."""

import json

from sca_hf.testing import tiny_text_config


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_tiny_gguf(path, tokenizer, eos_token_id=2, seed=0):
    """Writes a Llama of two layers with blocks of 8 bits; the file's end token may differ from the tokenizer's."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = tiny_text_config("smollm")
    model = AutoModelForCausalLM.from_config(config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    stored = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(stored["vocab"], key=stored["vocab"].get)
    words += [f"<unused{number}>" for number in range(config.vocab_size - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<") and word.endswith(">") else 1 for word in words])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in stored["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos_token_id)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    for name, weight in model.state_dict().items():
        name = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd")
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if name == "lm_head.weight":
            continue  # tied
        values = weight.float().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        values = gguf.quants.quantize(values, kind)
        writer.add_tensor(name.replace("model.norm", "output_norm"), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
