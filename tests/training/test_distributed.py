"""One process, accumulated batches, two processes with whole or sharded weights: the same training, to rounding.

Processes talk over gloo, on the CPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.recipes import recipe_path
from sca_hf.testing import tiny_model, tiny_tokenizer
from tests.training.distributed_run import CONFIGS, run


ROOT = Path(__file__).parents[2]
# Four images a step, in each of these ways.
WHOLE = {"per_device_train_batch_size": 4}
ACCUMULATED = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
DDP = {"per_device_train_batch_size": 2}
FSDP = {"per_device_train_batch_size": 2, "sharded": True}
LIMITS = {"accumulated": 1e-6, "ddp": 1e-6, "fsdp": 1e-5}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model to begin with, with all parts there may be, from a folder that mixer-only checkpoints can name."""
    folder = tmp_path_factory.mktemp("start")
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tiny_model(text_config=still, detail_widths=[4, 4, 8]).save_pretrained(folder)
    return folder


def on_two(folder, runs):
    """Runs of `distributed_run.run`, by name, one after the other in two processes."""
    settings = [{"folder": str(folder / name), **options} for name, options in runs.items()]
    for name in runs:
        (folder / name).mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(settings))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [*launch, str(ROOT / "tests/training/distributed_run.py"), str(folder / "runs.json")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-6000:]


def on_one(folder, runs):
    for name, options in runs.items():
        (folder / name).mkdir()
        run(str(folder / name), **options)


def result(folder):
    return load_file(folder / "trained.safetensors"), json.loads((folder / "left.json").read_text())


def logged(left, name):
    return [entry[name] for entry in left["log"] if name in entry]


def assert_same_run(found, expected, limit, excepted=("k_proj.bias",)):
    """Equal losses, gradient norms and weights; `excepted` parameters have a gradient of mere rounding."""
    (weights, left), (expected_weights, expected_left) = result(found), result(expected)
    assert len(logged(left, "loss")) == len(logged(expected_left, "loss")) > 2
    assert logged(left, "loss") == pytest.approx(logged(expected_left, "loss"), abs=1e-5)
    # Adam would hide gradients of another scale.
    assert logged(left, "grad_norm") == pytest.approx(logged(expected_left, "grad_norm"), rel=1e-4)
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        if not name.endswith(excepted):
            torch.testing.assert_close(weights[name], value, atol=limit, rtol=0.0, msg=f"{found.name}: {name}")


def test_two_processes_train_and_evaluate_as_one_does(start, tmp_path):
    options = {"start": str(start), "max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    options |= {"evaluate": True, "per_device_eval_batch_size": 1}
    on_one(tmp_path, {"whole": options | WHOLE})
    half = {name: value for name, value in options.items() if name != "evaluate"} | {"bf16": True}
    on_two(tmp_path, {"ddp": options | DDP, "fsdp": options | FSDP, "half ddp": half | DDP, "half fsdp": half | FSDP})
    said = result(tmp_path / "whole")[1]
    assert len({len(caption) for *_, caption in said["captions"]}) > 1, "processes would need as many steps"
    moved = load_file(tmp_path / "whole" / "trained.safetensors")
    before = load_file(start / "model.safetensors")
    assert max((moved[name] - before[name]).abs().max() for name in moved) > 1e-3
    for name in ("ddp", "fsdp"):
        assert_same_run(tmp_path / name, tmp_path / "whole", LIMITS[name], excepted=())
        left = result(tmp_path / name)[1]
        assert left["captions"] == said["captions"]
        assert left["metrics"]["eval_loss"] == pytest.approx(said["metrics"]["eval_loss"], abs=1e-5)
        # Whatever runs in half precision, positions do not.
        assert result(tmp_path / f"half {name}")[1]["positions"] == ["torch.float32"]


@pytest.mark.slow
def test_agreement_is_one_loss_for_two_processes_and_is_refused_for_shards(start, tmp_path):
    options = {"start": str(start), "max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    options |= {"agreement_weight": 1.0, "preset": "mixer+lm"}
    on_one(tmp_path, {"whole": options | WHOLE})
    on_two(tmp_path, {"ddp": options | DDP, "fsdp": options | FSDP | {"refused": "must be 0 under FSDP"}})
    assert_same_run(tmp_path / "ddp", tmp_path / "whole", LIMITS["ddp"])


def test_two_processes_without_gpus_are_one_run_of_a_recipe(start, tmp_path):
    """Nobody said that there are none; details are taught by both, too."""
    recipe = {
        "model": {"from": str(start), "detail_widths": [4, 4, 8]},
        "data": {
            "train": [{"format": "scenes", "count": 8}],
            "eval": [{"format": "scenes", "split": "validation", "count": 2}],
        },
        "training": {"max_steps": 2, "detail_steps": 2, "report_to": "none", "per_device_train_batch_size": 2},
        "output": str(tmp_path / "run"),
    }
    ScaProcessor.from_config(
        ScaForConditionalGeneration.from_pretrained(start).config, tiny_tokenizer()
    ).save_pretrained(start)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "sca_hf", "train", str(tmp_path / "recipe.yaml")]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-6000:]
    model = ScaForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    assert model.detail_encoder.stem_norm.num_batches_tracked == 2
    # Two steps of two images from each of two processes: one epoch.
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["epoch"] == 1.0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_takes_each_configuration_and_its_head_says_how(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    (command,) = (line[1:].split() for line in path.read_text().splitlines() if "accelerate launch" in line)
    assert command[:3] == ["accelerate", "launch", "--config_file"]
    assert (ROOT / command[3]) == path
    assert recipe_path(command[-1]).is_file()


# Key biases of fused projections lie in the middle of these.
FUSED = ("k_proj.bias", "c_attn.bias", "qkv.bias")
PRESETS = {
    "mixer": {},
    "mixer+mask_decoder": {"mask_loss_weight": 0.5},
    "mixer+lm": {},
    "mixer+lora": {},
    "all": {"mask_loss_weight": 0.5},
}


@pytest.fixture(scope="module")
def runs(start, tmp_path_factory):
    """Every run of the slow tests, by preset and layout, in two processes started once."""
    folder = tmp_path_factory.mktemp("runs")
    # With the published warm-up: Adam's first steps go by the sign of the gradient, be it rounding alone.
    options = {"start": str(start), "max_steps": 20, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 200}
    options |= {"prompt_probabilities": {"box": 1, "point": 1, "mask": 1}}
    alone, together = {}, {}
    for preset, more in PRESETS.items():
        base = options | {"preset": preset} | more
        alone |= {f"{preset} whole": base | WHOLE, f"{preset} accumulated": base | ACCUMULATED}
        together |= {f"{preset} ddp": base | DDP}
        together |= {f"{preset} fsdp": base | FSDP} if preset != "all" else {}
    together["half precision"] = options | FSDP | {"bf16": True}
    together["refused"] = options | FSDP | {"preset": "all", "refused": "cannot be sharded"}
    together["streamed"] = options | DDP | {"streamed": True, "max_steps": 3}
    saved = options | {"max_steps": 8, "save_strategy": "steps", "save_steps": 5, "count": 10}
    for layout, size in (("ddp", DDP), ("fsdp", FSDP)):
        for preset in ("mixer", "mixer+lora"):
            name = f"{preset} {layout} saved"
            together[name] = saved | size | {"preset": preset}
            resumed = {"resume": str(folder / name / "checkpoint-5")}
            together[f"{preset} {layout} resumed"] = saved | size | {"preset": preset} | resumed
    on_one(folder, alone)
    on_two(folder, together)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "layout"), [(p, k) for p in PRESETS for k in LIMITS if (p, k) != ("all", "fsdp")])
def test_twenty_steps_end_in_the_same_weights(runs, start, preset, layout):
    excepted = FUSED if preset in ("all", "mixer+lm") else FUSED[:1]
    trained, before = result(runs / f"{preset} whole")[0], load_file(start / "model.safetensors")
    assert max((trained[name] - before[name]).abs().max() for name in trained if name in before) > 5e-5
    assert_same_run(runs / f"{preset} {layout}", runs / f"{preset} whole", LIMITS[layout], excepted)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mixer", "mixer+lora"])
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_a_resumed_run_of_two_processes_ends_bit_equal(runs, layout, preset):
    unbroken, resumed = (result(runs / f"{preset} {layout} {kind}") for kind in ("saved", "resumed"))
    assert logged(unbroken[1], "loss") == logged(resumed[1], "loss")
    for name, value in unbroken[0].items():
        assert torch.equal(resumed[0][name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mixer", "mixer+lora"])
def test_a_checkpoint_of_shards_loads_as_any_other_and_holds_no_frozen_weight(runs, preset):
    checkpoint = runs / f"{preset} fsdp saved" / "checkpoint-8"
    trained = load_file(runs / f"{preset} fsdp saved" / "trained.safetensors")
    assert set(load_file(checkpoint / "trained.safetensors")) == set(trained)
    assert not any(key.startswith(("sam.", "language_model.")) for key in load_file(checkpoint / "model.safetensors"))
    assert not list(checkpoint.glob("*fsdp*"))
    loaded = dict(ScaForConditionalGeneration.from_pretrained(checkpoint).named_parameters())
    for name, value in trained.items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.slow
def test_shards_train_in_half_precision(runs):
    half, single = (logged(result(runs / name)[1], "loss") for name in ("half precision", "mixer whole"))
    assert half == pytest.approx(single, abs=0.02) and half != single


@pytest.mark.slow
def test_a_streamed_set_feeds_two_processes(runs):
    assert len(logged(result(runs / "streamed")[1], "loss")) == 3
