"""What each preset trains, at which rate, and that nothing which takes gradients ever goes without one."""

import pytest
import torch
from tiny_runs import parameters, records, saved_model, trainer

from sca_hf.training.arguments import PRESETS
from sca_hf.training.image_size import add_second_look
from sca_hf.training.presets import (
    apply_preset,
    default_learning_rates,
    parameter_groups,
    plain_name,
)


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def changed(model, processor, folder, **options):
    """Names of what three steps change."""
    before = parameters(model)
    run = trainer(model, processor, folder, max_steps=3, train=records(masks=True), **options)
    run.train()
    return {name for name, p in run.model.named_parameters() if name not in before or not torch.equal(p, before[name])}


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        ("mixer", {"mixer"}),
        ("mixer+lm", {"mixer", "language_model"}),
        ("mixer+mask_decoder", {"mixer", "sam.mask_decoder"}),
        ("all", {"mixer", "sam.mask_decoder", "sam.vision_encoder", "sam.prompt_encoder", "language_model"}),
    ],
)
def test_a_preset_changes_its_parts_and_no_others(make_model, processor, tmp_path, preset, parts):
    weight = 1.0 if "mask" in preset or preset == "all" else None
    model = make_model()
    names = changed(model, processor, tmp_path, preset=preset, mask_loss_weight=weight)
    assert {".".join(name.split(".")[: 1 if name[0] != "s" else 2]) for name in names} == parts
    assert model.config.freeze_base_models == (preset == "mixer")


@pytest.mark.parametrize("sam_type", ["sam", "sam_hq"])
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "all"])
def test_every_weight_that_takes_gradients_gets_one_in_every_step(make_model, processor, tmp_path, preset, sam_type):
    model = saved_model(make_model, tmp_path / "model", sam_type=sam_type)
    weight = 1.0 if PRESETS[preset].trains_masks else None
    if preset == "second_look":
        add_second_look(model, 32)
    run = trainer(model, processor, tmp_path, preset=preset, mask_loss_weight=weight, train=records(masks=True))
    batch = run.data_collator([run.train_dataset[k] for k in range(2)])
    model.train()(**batch).loss.backward()
    idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not idle
    assert run.args.ddp_find_unused_parameters is False


def test_masks_without_a_mask_loss_are_refused_or_left_alone(make_model, processor, tmp_path):
    with pytest.raises(ValueError, match="set mask_loss_weight above 0"):
        trainer(make_model(), processor, tmp_path, preset="mixer+mask_decoder")
    with pytest.raises(ValueError, match="does not train masks"):
        trainer(make_model(), processor, tmp_path, preset="mixer", mask_loss_weight=1.0)
    with pytest.raises(ValueError, match="none of the first 19 regions has one"):
        trainer(make_model(), processor, tmp_path, preset="mixer+mask_decoder", mask_loss_weight=1.0)
    model = make_model()
    apply_preset(model, "all")
    assert not any("iou_prediction_head" in name or "hypernetworks" in name for name in trained(model))


def test_a_model_that_learned_masks_goes_on_learning_them(make_model, processor, tmp_path):
    model = make_model(mask_loss_weight=1.0)
    run = trainer(model, processor, tmp_path, preset="mixer+mask_decoder", train=records(masks=True))
    assert run.data_collator.mask_labels and run.eval_collator.mask_labels
    assert not trainer(model, processor, tmp_path, preset="mixer").data_collator.mask_labels


def test_a_small_language_model_learns_gently_and_a_large_one_more_so(make_model):
    model = make_model()
    assert default_learning_rates(model, "mixer+lm", 1e-4) == {"language_model": pytest.approx(1e-6)}
    model.language_model = torch.nn.Linear(20_000, 20_000, device="meta")
    assert default_learning_rates(model, "mixer+lm", 1e-4) == {"language_model": pytest.approx(1e-7)}
    assert default_learning_rates(model, "mixer", 1e-4) == {}


def test_modules_learn_at_their_own_rates(make_model, processor, tmp_path):
    rates = {"language_model": 2e-5, "mixer.transformer.layers.1": 3e-5, "mixer.task_tokens": 4e-5}
    run = trainer(make_model(), processor, tmp_path, preset="mixer+lm", module_learning_rates=rates, weight_decay=0.1)
    optimizer = run.create_optimizer()
    rate_of = {
        id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    found = {name: rate_of.pop(id(p)) for name, p in run.model.named_parameters() if p.requires_grad}
    assert not rate_of, "nothing frozen is optimised, nothing twice"
    expected = {
        "mixer.transformer.layers.1.mlp.lin1.weight": (3e-5, 0.1),
        "mixer.transformer.layers.1.mlp.lin1.bias": (3e-5, 0.0),
        "mixer.transformer.layers.0.mlp.lin1.weight": (3e-3, 0.1),
        "mixer.transformer.layers.0.layer_norm1.weight": (3e-3, 0.0),
        "mixer.task_tokens.weight": (4e-5, 0.1),
        "language_model.transformer.wte.weight": (2e-5, 0.1),
    }
    assert {name: found[name] for name in expected} == expected
    assert optimizer.param_groups[0]["lr"] == 3e-3, "the first group's rate is what the logs show"


def test_a_rate_of_0_freezes_a_module(make_model, processor, tmp_path):
    rates = {"sam.vision_encoder": 0, "sam.vision_encoder.neck": 1e-4}
    names = changed(make_model(), processor, tmp_path, preset="all", mask_loss_weight=1.0, module_learning_rates=rates)
    seen = {name for name in names if name.startswith("sam.vision_encoder")}
    assert seen and all(name.startswith("sam.vision_encoder.neck") for name in seen)


def test_a_module_is_its_whole_dotted_name():
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "layer1": torch.nn.Linear(2, 2)})
    groups = parameter_groups(model, 1.0, 0.0, [], {"layer": 0.5})
    assert [len(group["params"]) for group in groups] == [2, 2]
    assert groups[1]["params"][0] is model["layer"].weight


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"mixr": 1e-4}, "has no such module; its parts are .*mixer.transformer"),
        ({"mixer.trans": 1e-4}, "no such module"),
        ({"sam.vision_encoder": 1e-4}, "which is frozen"),
        ({"mixer": -1.0}, r"expected 0 \(frozen\) or more"),
    ],
)
def test_a_rate_that_reaches_nothing_is_an_error(model, processor, tmp_path, rates, message):
    with pytest.raises(ValueError, match=message):
        trainer(model, processor, tmp_path, module_learning_rates=rates).create_optimizer()


def test_names_are_those_below_the_wrappers():
    assert plain_name("module._orig_mod.mixer._fsdp_wrapped_module.task_tokens.weight") == "mixer.task_tokens.weight"
