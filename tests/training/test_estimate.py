"""The estimate against what real models take: parameters exactly, activations as autograd keeps them."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sca_hf.cli import main
from sca_hf.model_names import bundled_model
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.recipes import recipe_names, recipe_path
from sca_hf.testing import tiny_config, tiny_sam_config
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.presets import apply_preset, prepare_model
from sca_hf.training.recipe.build import Configurations, build_empty_model, empty_model
from sca_hf.training.recipe.known_configs import KNOWN_CONFIGS, known_config
from sca_hf.training.recipe.memory import estimate_memory, part_memories, smaller_settings
from sca_hf.training.recipe.memory_report import weight_memories
from sca_hf.training.recipe.schema import ModelSection, load_recipe
from sca_hf.training.recipe.simulation import LiveBytes, _CudaAutocast, simulate_step, without_contents


TRAINING = {"per_device_train_batch_size": 2, "regions_per_image": 3}


def estimate_config(config, training):
    return estimate_memory(lambda args: empty_model(config), training)


def recipe_config(section, beside=None):
    """The configuration of the model that an estimate builds, and what it had to assume."""
    parts = Configurations(beside)
    args = ScaTrainingArguments("unused", use_cpu=True)
    return build_empty_model(section, args, parts).config, parts.notes


def real_model(config, preset="mixer"):
    model = ScaForConditionalGeneration(config)
    apply_preset(model, preset)
    return model.train()


def batch(images=2, regions=3, side=64, tokens=20):
    """As `estimate_config` assumes it, with contents."""
    ids = torch.randint(0, 320, (images, regions, tokens))
    boxes = torch.tensor([4.0, 4.0, 40.0, 30.0]).expand(images, regions, 4).clone()
    return dict(
        pixel_values=torch.randn(images, 3, side, side),
        input_boxes=boxes,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=ids.clone(),
        region_chunk_size=images * regions,
    )


def saved_for_backward(model, inputs):
    """Bytes that autograd keeps, each storage once, parameters and inputs left out."""
    known = {
        x.untyped_storage().data_ptr()
        for x in (*model.parameters(), *model.buffers(), *inputs.values())
        if torch.is_tensor(x)
    }
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    total = sum(sizes.values())  # while `loss` keeps them alive, no address is used twice
    del loss
    return total


@pytest.mark.parametrize(
    ("family", "sam_type", "preset"),
    [("gpt2", "sam", "mixer"), ("open_llama", "sam_hq", "mixer"), ("gpt2", "sam", "all"), ("phi2", "sam", "mixer+lm")],
)
def test_activations_are_those_that_autograd_keeps(family, sam_type, preset):
    config = tiny_config(family, sam_type)
    estimate = estimate_config(config, {**TRAINING, "preset": preset})
    measured = saved_for_backward(real_model(config, preset), batch())
    assert estimate.step.kept == pytest.approx(measured, rel=0.15)


def test_a_simulated_step_is_a_real_one():
    config = tiny_config()
    real, simulated = simulate_step(real_model(config), batch()), estimate_config(config, TRAINING).step
    # The library leaves an attention mask out that hides nothing, where it can see that.
    assert simulated.saved == pytest.approx(real.saved, rel=0.1)
    assert simulated.kept == pytest.approx(real.kept, rel=0.05)
    assert simulated.forward_peak == pytest.approx(real.forward_peak, rel=0.05)
    assert simulated.backward_peak == pytest.approx(real.backward_peak, rel=0.05)


def test_agreement_is_counted_as_it_is_made():
    config, inputs = tiny_config(), batch()
    inputs["labels"] = torch.arange(3).view(1, 3, 1).expand_as(inputs["labels"]).contiguous()
    real = simulate_step(real_model(config), inputs, agreement=True)
    estimate = estimate_config(config, {**TRAINING, "agreement_weight": 1.0})
    assert estimate.step.kept == pytest.approx(real.kept, rel=0.05)
    assert estimate.step.backward_peak == pytest.approx(real.backward_peak, rel=0.05)
    assert estimate.step.saved["language model"] > 2 * estimate_config(config, TRAINING).step.saved["language model"]


def test_weights_gradients_and_optimizer_states_are_exact():
    config = tiny_config("open_llama")
    estimate, model = estimate_config(config, TRAINING), real_model(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(**batch()).loss.backward()
    optimizer.step()
    for part, module in zip(estimate.parts, (model.sam, model.mixer, model.language_model), strict=True):
        tensors = [*module.parameters(), *module.buffers()]
        assert part.bytes == sum(x.numel() * x.element_size() for x in tensors)
        assert part.parameters == sum(p.numel() for p in module.parameters())
        assert part.trained == sum(p.numel() for p in module.parameters() if p.requires_grad)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert estimate.gradients == sum(g.numel() * g.element_size() for g in gradients)
    states = [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    assert estimate.optimizer == sum(x.numel() * x.element_size() for x in states)


def test_more_regions_take_more_and_checkpointing_takes_less():
    config = tiny_config()
    few, many = (estimate_config(config, {**TRAINING, "regions_per_image": n}).step.saved["mixer"] for n in (2, 8))
    assert many == pytest.approx(4 * few, rel=0.02)
    checkpointed = estimate_config(config, {**TRAINING, "regions_per_image": 2, "gradient_checkpointing": True})
    assert checkpointed.step.saved["mixer"] < 0.6 * few


def test_cached_embeddings_leave_the_encoder_out(tmp_path):
    config = tiny_config()
    cached = estimate_config(config, {**TRAINING, "embedding_cache": str(tmp_path)})
    assert cached.step.encoder_peak == 0 < estimate_config(config, TRAINING).step.encoder_peak
    assert cached.embedding_bytes == 2 * 32 * 8 * 8 and not list(tmp_path.iterdir())


def test_precision_counts():
    plain = estimate_config(tiny_config(), TRAINING)
    held = estimate_config(tiny_config(), {**TRAINING, "frozen_dtype": "bfloat16"})
    assert held.parts[2].bytes_by_dtype.keys() == {"bfloat16"}
    assert held.parts[2].bytes == plain.parts[2].bytes / 2 and held.parts[1].bytes == plain.parts[1].bytes
    half = estimate_config(tiny_config(), {**TRAINING, "frozen_dtype": "bfloat16", "bf16": True})
    assert half.step.saved["mixer"] < 0.8 * plain.step.saved["mixer"]
    for family in ("gpt2", "open_llama"):
        four = estimate_config(tiny_config(family), {**TRAINING, "quantize_language_model": "bitsandbytes-4bit"})
        assert four.parts[2].bytes_by_dtype.keys() == {"bitsandbytes-4bit", "float32"}
    with pytest.raises(ValueError, match="cannot be quantized"):
        settings = {"quantize_language_model": "torchao-int8", "preset": "mixer+lm"}
        estimate_config(tiny_config(), {**TRAINING, **settings})


def test_weights_of_a_model_that_only_answers(capsys):
    """As loaded in each precision, buffers too; what torchao can and cannot take is known."""
    config = tiny_config()
    by_precision = weight_memories(config)
    for title, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = ScaForConditionalGeneration(config).to(dtype)
        held = {id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
        assert sum(part.bytes for part in by_precision[title]) == sum(held.values())
        assert sum(part.parameters for part in by_precision[title]) == model.num_parameters()
    half, eight, four = (by_precision[title][2] for title in ("bfloat16", "+ LM int8", "+ LM 4-bit"))
    layers = sum(
        p.numel() for n, p in model.language_model.named_parameters() if p.ndim == 2 and ".h." in n
    )  # all linear layers of GPT-2 but the head, which is its word embeddings
    assert half.bytes - eight.bytes == layers and four.bytes < eight.bytes
    assert [part.bytes for part in by_precision["+ LM int8"][:2]] == [p.bytes for p in by_precision["bfloat16"][:2]]
    model = model.requires_grad_(False)
    gpt2 = list(part_memories(model, "torchao-int8"))[2]
    assert set(gpt2.bytes_by_dtype) == {"bfloat16"}, "torchao quantizes no Conv1D"
    main(["estimate", str(bundled_model("sca-tiny")), "--gpu-memory", "1MB"])
    printed = capsys.readouterr().out
    assert "total" in printed and "too large" in printed
    assert main(["estimate", str(bundled_model("sca-tiny")), "--images", "3"])
    assert "only apply to recipes" in capsys.readouterr().err


def test_what_is_held_in_half_precision_is_what_a_run_holds(tmp_path):
    for preset in ("mixer", "mixer+lm", "mixer+lora"):
        settings = {**TRAINING, "frozen_dtype": "bfloat16", "preset": preset}
        model = ScaForConditionalGeneration(tiny_config())
        model.base_sources = {"sam": {"path": "x"}, "language_model": {"path": "x"}}
        prepare_model(model, ScaTrainingArguments(str(tmp_path), use_cpu=True, **settings))
        for part, module in zip(
            estimate_config(tiny_config(), settings).parts, (model.sam, model.mixer, model.language_model), strict=True
        ):
            assert part.bytes == sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))
            assert part.trained == sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_norms_run_in_single_precision_as_on_cuda():
    half = torch.randn(4, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), _CudaAutocast():
        assert torch.nn.functional.layer_norm(half, (8,)).dtype == torch.float32
        assert torch.nn.functional.linear(half.float(), half.float()).dtype == torch.bfloat16


def test_live_bytes_counts_what_is_alive_once():
    with LiveBytes() as live:
        kept = torch.ones(256)
        view, sum_ = kept.view(2, 128), kept + 1
        assert live.now == 2 * 1024 and view is not None
        del sum_
        assert live.now == 1024 and live.peak == 2 * 1024


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("facebook/sam-vit-base", 93_735_728),
        ("facebook/sam-vit-large", 312_343_088),
        ("facebook/sam-vit-huge", 641_090_864),
        ("gpt2-large", 774_030_080),
        ("openlm-research/open_llama_3b_v2", 3_426_473_600),
        ("microsoft/phi-2", 2_779_683_840),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
    ],
)
def test_known_configurations_have_the_published_number_of_parameters(name, parameters):
    config = known_config(name)
    auto = AutoModel if config.model_type == "sam" else AutoModelForCausalLM
    with torch.device("meta"):
        assert auto.from_config(config).num_parameters() == parameters


def test_every_base_of_the_published_recipes_is_known():
    named = set()
    for name in recipe_names():
        model = load_recipe(recipe_path(name)).model
        named |= {model.sam, model.language_model, model.swap_language_model, model.swap_image_encoder} - {None}
    assert named and named <= KNOWN_CONFIGS.keys()


def test_the_table_serves_only_where_the_hub_does_not(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("offline")

    section = ModelSection(sam="facebook/sam-vit-base", language_model="microsoft/phi-2")
    reached = []
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, **_: reached.append(name) or known_config(name))
    assert recipe_config(section)[1] == [] and reached == ["facebook/sam-vit-base", "microsoft/phi-2"]
    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    config, notes = recipe_config(section)
    assert config.mixer_config.text_hidden_size == 2560
    assert [note.split()[0] for note in notes] == ["facebook/sam-vit-base", "microsoft/phi-2"]
    with pytest.raises(OSError, match="offline"):
        recipe_config(ModelSection(sam="facebook/sam-vit-base", language_model="some/unknown"))


def test_local_parts_are_read_as_they_are(make_model, tmp_path):
    model = make_model("open_llama")
    model.save_pretrained(tmp_path / "whole")
    tiny_sam_config("sam_hq").save_pretrained(tmp_path / "hq")
    section = ModelSection(**{"from": str(tmp_path / "whole")}, swap_image_encoder=str(tmp_path / "hq"), image_size=96)
    config, notes = recipe_config(section)
    assert notes == [] and config.text_config.model_type == "llama"
    assert config.sam_config.model_type == "sam_hq" and config.sam_config.vision_config.image_size == 96
    assert config.mixer_config.num_hidden_layers == 3


def test_a_stage_that_is_not_there_yet_is_taken_from_its_recipe(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "model: {from: sca-tiny, image_size: 128}\ndata: {train: {format: scenes, count: 4}}\noutput: runs/nowhere\n"
    )
    config, notes = recipe_config(ModelSection(**{"from": "runs/nowhere/model"}), tmp_path)
    assert config.sam_config.vision_config.image_size == 128 and "that one.yaml will produce" in notes[0]


def test_advice_stops_where_it_fits():
    config = tiny_config(text_config={"n_embd": 256})
    held = estimate_config(config, {**TRAINING, "frozen_dtype": "bfloat16"}).total
    assert estimate_config(config, TRAINING).total > held + (2 << 20)
    ((change, total),) = smaller_settings(lambda args: empty_model(config), TRAINING, held + (1 << 20))
    assert change == "--training.frozen_dtype=bfloat16" and total == pytest.approx(held, abs=1 << 20)


@pytest.mark.slow
def test_advice_goes_step_by_step_and_ends():
    config, training = tiny_config(), {**TRAINING, "regions_per_image": 32}
    tried = smaller_settings(lambda args: empty_model(config), training, 1)
    names = [change.removeprefix("--training.").split("=")[0] for change, _ in tried]
    assert names == [
        "frozen_dtype",
        "bf16",
        "gradient_checkpointing",
        "per_device_train_batch_size",
        *["regions_per_image"] * 3,
        "quantize_language_model",
    ]
    assert tried[-1][1] < estimate_config(config, training).total


def test_nothing_is_made_while_simulating():
    with without_contents():
        weight = torch.empty(10**7, 10**7)  # 400 TB
    assert weight.shape == (10**7, 10**7)
