"""A stopped run is not a finished run: signals, callbacks and early stopping, in the Trainer and in the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from sca_hf.cli import main
from sca_hf.training.recipe import run as recipe_module
from sca_hf.training.trainer import ScaTrainer
from tests.training import killed_runs
from tests.training.killed_runs import make_trainer


RECIPE = """\
model: {from: BASE}
data: {train: {format: scenes, count: 8}, holdout: 0.25}
training:
  max_steps: 8
  save_steps: 4
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 1
  learning_rate: 0.003
  warmup_steps: 0
  use_cpu: true
  disable_tqdm: true
  sample_sheet: 0
  eval_generate: false
output: OUTPUT
"""


class Stop(TrainerCallback):
    """Stops training at a step, wherever a callback may."""

    def __init__(self, step, event="on_step_end", act=None):
        self.step, self.done = step, False
        self.act = act or (lambda control: setattr(control, "should_training_stop", True))
        setattr(self, event, self._stop)

    def _stop(self, args, state, control, **kwargs):
        if state.global_step >= self.step and not self.done:
            self.done = True
            self.act(control)


def sigterm(control):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def train(make_model, processor, tmp_path, monkeypatch, capfd):
    """`sca-hf train` of a recipe with more callbacks: returns the exit code and what was printed."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    make_model().save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")

    def run(name, *options, callbacks=()):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.replace("BASE", str(tmp_path / "base")).replace("OUTPUT", str(tmp_path / name)))
        made = lambda *args, **kwargs: ScaTrainer(*args, callbacks=list(callbacks), **kwargs)  # noqa: E731
        monkeypatch.setattr(recipe_module, "ScaTrainer", made)
        code = main(["train", str(path), *options])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def unbroken():
    """Weights of runs that nothing stopped, by their options."""
    return {}


@pytest.fixture
def straight(train, tmp_path, unbroken):
    """Returns the weights of a run that nothing stops."""

    def run(*options):
        if options not in unbroken:
            assert train("straight", *options)[0] == 0
            unbroken[options] = weights(tmp_path / "straight")
        return unbroken[options]

    return run


def weights(folder):
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "model" / "model.safetensors").items()}


def assert_unfinished(folder):
    assert not (folder / "model").exists() and not (folder / "metrics.json").exists()


def fast_and_slow(first, *others):
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


@pytest.mark.parametrize(
    "event", fast_and_slow("on_step_end", "on_log", "on_evaluate", "on_epoch_end", "on_step_begin")
)
def test_what_a_callback_stops_is_unfinished_and_resumes_to_the_same_weights(train, straight, tmp_path, event):
    # Three steps an epoch: it is stopped in the middle of one, or at its end, and evaluates at ends.
    options = ["--training.logging_steps=1", "--training.eval_strategy=epoch", "--training.save_total_limit=1"]
    options += ["--training.save_strategy=epoch", "--training.load_best_model_at_end=true"]
    code, out, err = train("stopped", *options, callbacks=[Stop(5, event)])
    step = {"on_epoch_end": 6, "on_evaluate": 6, "on_step_begin": 6}.get(event, 5)
    assert code == 75 and f"stopped at step {step} of 8, the same command resumes from step {step}." in err
    assert "model:" not in out
    assert_unfinished(tmp_path / "stopped")
    code, out, _ = train("stopped", *options)
    assert code == 0 and "already finished" not in out
    assert weights(tmp_path / "stopped") == straight(*options)
    assert "already finished" in train("stopped", *options)[1]


def test_a_stop_that_is_told_to_save_nothing_starts_again(train, tmp_path):
    code, _, err = train("run", "--training.save_strategy=no", callbacks=[Stop(5)])
    assert code == 75
    assert "stopped at step 5 of 8, the same command resumes from the start, because no checkpoint was written" in err
    assert_unfinished(tmp_path / "run")


@pytest.mark.parametrize("event", fast_and_slow("on_pre_optimizer_step", "on_step_begin", "on_step_end"))
def test_sigterm_with_a_checkpoint_in_time_ends_after_the_step(train, straight, tmp_path, event):
    before = signal.getsignal(signal.SIGTERM)
    options = ["--training.enable_jit_checkpoint=true"]
    code, _, err = train("stopped", *options, callbacks=[Stop(5, event, sigterm)])
    assert code == 143 and signal.getsignal(signal.SIGTERM) == before
    step = 5 if event == "on_step_end" else 6
    assert f"stopped at step {step} of 8, the same command resumes from step {step}." in err
    assert_unfinished(tmp_path / "stopped")
    assert train("stopped", *options)[0] == 0
    assert weights(tmp_path / "stopped") == straight()


def test_sigterm_without_one_ends_at_once_and_resumes_from_the_last(train, straight, tmp_path):
    code, _, err = train("stopped", callbacks=[Stop(5, act=sigterm)])
    assert code == 143 and "stopped at step 5 of 8, the same command resumes from step 4." in err
    assert_unfinished(tmp_path / "stopped")
    assert train("stopped")[0] == 0
    assert weights(tmp_path / "stopped") == straight()


@pytest.mark.parametrize("jit", ["true", "false"])
def test_sigterm_before_the_first_step_waits_for_none(train, tmp_path, jit):
    option = f"--training.enable_jit_checkpoint={jit}"
    code, _, err = train("run", option, callbacks=[Stop(0, "on_init_end", sigterm)])
    assert code == 143 and "interrupted" in err
    assert_unfinished(tmp_path / "run")


def test_sigterm_in_the_last_evaluation_leaves_no_scores(train, straight, tmp_path):
    code, _, err = train("stopped", callbacks=[Stop(8, "on_prediction_step", sigterm)])
    assert code == 143 and "stopped at step 8 of 8, the same command resumes from step 8." in err
    assert_unfinished(tmp_path / "stopped")
    assert train("stopped")[0] == 0
    assert weights(tmp_path / "stopped") == straight()


def test_ctrl_c_says_the_same(train, tmp_path):
    def interrupt(control):
        raise KeyboardInterrupt

    code, _, err = train("run", callbacks=[Stop(5, act=interrupt)])
    assert code == 130 and "stopped at step 5 of 8, the same command resumes from step 4." in err
    assert_unfinished(tmp_path / "run")


EARLY = ["--training.load_best_model_at_end=true", "--training.metric_for_best_model=eval_loss"]
EARLY += ["--training.save_strategy=steps", "--training.save_steps=2", "--training.eval_strategy=steps"]
EARLY += ["--training.eval_steps=2"]


def test_early_stopping_is_a_finish_and_says_so(train, tmp_path):
    # Nothing is ever better by as much as 100.
    code, out, _ = train("run", *EARLY, callbacks=[EarlyStoppingCallback(2, 100.0)])
    assert code == 0 and "finished early at step 6 of 8: eval_loss did not improve in 2 evaluations." in out
    assert f"model: {tmp_path / 'run' / 'model'}" in out and (tmp_path / "run" / "metrics.json").exists()
    code, out, _ = train("run", *EARLY)
    assert code == 0 and "already finished" in out and "finished early at step 6 of 8" in out


def test_early_stopping_killed_before_its_model_is_saved_takes_no_step_more(train, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_module, "_save", lambda *_: sigterm(None))
    assert train("run", *EARLY, callbacks=[EarlyStoppingCallback(2, 100.0)])[0] == 143
    monkeypatch.undo()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    again = Stop(0, "on_step_begin", lambda control: pytest.fail("a step more"))
    code, out, _ = train("run", *EARLY, callbacks=[EarlyStoppingCallback(2, 100.0), again])
    assert code == 0 and "finished early at step 6 of 8" in out


@pytest.mark.parametrize("limit", fast_and_slow(1, 2))
def test_the_trainer_itself_stops_exactly_in_the_middle_of_an_accumulated_step(tmp_path, limit):
    # With dropout: every generator of random numbers counts.
    options = {"max_steps": 8, "save_steps": 4, "save_total_limit": limit, "enable_jit_checkpoint": True}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    stopped = make_trainer(tmp_path / "stopped", **options)
    stopped.add_callback(Stop(5, "on_substep_end", sigterm))
    stopped.train()
    assert stopped.stopped and stopped.state.global_step == 6
    resumed = make_trainer(tmp_path / "stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert not resumed.stopped and resumed.state.global_step == 8
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
@pytest.mark.parametrize("jit", ["true", "false"])
def test_a_real_process_ended_by_sigterm_resumes_to_the_same_weights(train, tmp_path, jit):
    options = [f"--training.enable_jit_checkpoint={jit}", "--training.max_steps=60", "--training.logging_steps=1"]
    assert train("straight", *options)[0] == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tmp_path / "straight"), str(tmp_path / "stopped")))
    command = [sys.executable, "-m", "sca_hf", "train", str(recipe), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(Path(tmp_path / "stopped").glob("checkpoint-*")) and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert "stopped at step " in err and " of 60, the same command resumes from step " in err
    assert_unfinished(tmp_path / "stopped")
    subprocess.run(command, check=True, timeout=300)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")


@pytest.mark.slow
def test_of_two_processes_one_is_told_and_both_stop_after_the_same_step(tmp_path):
    options = {"enable_jit_checkpoint": True, "max_steps": 60, "save_total_limit": 1}
    killed_runs.finish(*killed_runs.start_pair(tmp_path / "straight", **options))
    folder = tmp_path / "stopped"
    pair = killed_runs.start_pair(folder, **options)
    while not list((folder / "checkpoints").glob("checkpoint-*")) and pair[0].is_alive():
        time.sleep(0.02)
    pair[1].terminate()
    killed_runs.finish(*pair)
    assert not (folder / "final").exists()
    killed_runs.finish(*killed_runs.start_pair(folder, **options))
    assert killed_runs.weights(folder) == killed_runs.weights(tmp_path / "straight")
