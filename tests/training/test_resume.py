"""Killed and resumed, a run ends with the weights it would have had, to the bit; or says why it will not go on."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from sca_hf.training.checkpoint.fingerprint import preserve_rng_state
from sca_hf.training.checkpoint.integrity import MANIFEST, CheckpointError, last_checkpoint
from tests.training.killed_runs import (
    finish,
    kill_after,
    kill_while_saving,
    make_trainer,
    records,
    start,
    start_pair,
    train,
    weights,
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder and the weights of a run that nobody killed, and how long it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start(folder))
    return folder, weights(folder)


def killed_and_resumed(folder, kills, **options):
    """Starts a run again and again until it is done; `kills` are functions that kill a process."""
    killed = 0
    for kill in kills:
        process = start(folder, **options)
        killed += kill(process)
        if (folder / "final").exists():
            break
    finish(start(folder, **options))
    return killed


def test_a_run_killed_while_saving_and_between_ends_with_the_same_weights(unbroken, tmp_path):
    kills = [
        lambda process: kill_while_saving(tmp_path, process, delay=0.004, saves=2),
        lambda process: kill_while_saving(tmp_path, process, delay=0.06, saves=3),
    ]
    assert killed_and_resumed(tmp_path, kills) == 2
    assert weights(tmp_path) == unbroken[1]


def test_cached_embeddings_change_nothing_of_that(tmp_path):
    finish(start(tmp_path / "unbroken", cache=tmp_path / "one"))
    folder = tmp_path / "killed"
    kills = [lambda process: kill_while_saving(folder, process, delay=0.01, saves=2)]
    assert killed_and_resumed(folder, kills, cache=tmp_path / "other") == 1
    assert weights(folder) == weights(tmp_path / "unbroken")


def test_two_processes_killed_while_saving_go_on_as_one_run(tmp_path):
    whole = start_pair(tmp_path / "unbroken")
    finish(*whole)
    folder = tmp_path / "killed"
    pair = start_pair(folder)
    # Of the fifth checkpoint, in the middle of an epoch that is not the first.
    assert kill_while_saving(folder, pair[0], delay=0.01, saves=5)
    pair[1].kill()
    pair[1].join()
    kept = last_checkpoint(folder / "checkpoints")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in kept.iterdir()}
    finish(*start_pair(folder))
    assert weights(folder) == weights(tmp_path / "unbroken")


def test_a_checkpoint_waits_for_the_random_numbers_of_every_process(tmp_path):
    finish(*start_pair(tmp_path, max_steps=2, slow_rank=1))
    files = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / MANIFEST).read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(files)


def test_workers_that_persist_change_nothing_of_that(unbroken, tmp_path):
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    kills = [lambda process: kill_while_saving(tmp_path, process, delay=0.01, saves=4)]
    assert killed_and_resumed(tmp_path, kills, **options) == 1
    assert weights(tmp_path) == unbroken[1]


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_ten_kills_at_random_moments_change_no_bit(tmp_path, cached):
    rng = random.Random(int(cached))
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True} if cached else {}
    options |= {"max_steps": 160, "save_steps": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    caches = [{"cache": tmp_path / name} if cached else {} for name in ("one", "other")]
    finish(start(tmp_path / "unbroken", **options, **caches[0]))
    folder = tmp_path / "killed"

    def at_random(process):
        if rng.random() < 0.5:
            return kill_while_saving(folder, process, delay=rng.uniform(0, 0.05), saves=rng.randint(1, 4))
        # The imports are done by the server; the first steps come after half a second.
        return kill_after(process, rng.uniform(0.1, 1.5))

    assert killed_and_resumed(folder, [at_random] * 10, **options, **caches[1]) == 10
    assert weights(folder) == weights(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 7}, "seed was 42 and is 7"),
        ({"learning_rate": 1e-4}, "learning_rate was 0.003 and is 0.0001"),
        ({"per_device_train_batch_size": 4}, "images_per_step was 4 and is 8"),
        ({"gradient_accumulation_steps": 4}, "images_per_step was 4 and is 8"),
        ({"max_steps": 12}, "max_steps was 4 and is 12"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type was 'linear' and is 'cosine'"),
        (
            {"weight_decay": 0.1, "adam_beta2": 0.9},
            "adam_beta2 was 0.999 and is 0.9; weight_decay was 0.0001",
        ),
        ({"regions_per_image": 2}, "regions_per_image was 1 and is 2"),
        (
            {"prompt_probabilities": {"box": 1.0}},
            "prompt_probabilities.jittered_box was 0.5 and is None; prompt_probabilities.point was 0.5 and is None",
        ),
    ],
)
def test_a_run_with_other_arguments_is_not_gone_on_with(four_steps, change, words):
    run = make_trainer(four_steps, **({"max_steps": 4} | change))
    with pytest.raises(CheckpointError, match="belongs to another run") as error:
        run.train(resume_from_checkpoint=True)
    assert words in str(error.value) and "allow_changed_resume=True" in str(error.value)


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    make_trainer(folder, max_steps=4).train()
    return folder


def test_other_data_prompts_or_frozen_weights_are_another_run(four_steps):
    def resume(change):
        run = make_trainer(four_steps, max_steps=4)
        change(run)
        with pytest.raises(CheckpointError, match="belongs to another run") as error:
            run.train(resume_from_checkpoint=True)
        return str(error.value)

    def move_a_box(run):
        run.train_dataset.dataset[3]["regions"][0]["box"][0] += 1

    def drop_an_image(run):
        run.train_dataset.dataset.pop()

    def shift_the_encoder(run):
        with torch.no_grad():
            next(run.model.sam.vision_encoder.parameters()).add_(1e-3)

    assert "data: contents of the records was" in resume(move_a_box)
    assert "data: images was 11 and is 10" in resume(drop_an_image)
    assert "model: frozen weights was" in resume(shift_the_encoder)
    assert "collator: box_jitter was 0.1 and is 0.2" in resume(
        lambda run: setattr(run.data_collator, "box_jitter", 0.2)
    )
    assert "model: trained parameters was" in resume(lambda run: run.model.mixer.task_tokens.requires_grad_(False))


def test_harmless_changes_are_no_other_run_and_others_can_be_allowed(four_steps, tmp_path, caplog):
    shutil.copytree(four_steps / "checkpoints", tmp_path / "checkpoints")
    run = make_trainer(tmp_path, max_steps=4, save_steps=1, logging_steps=1, eval_strategy="steps", eval_steps=2)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 4
    run = make_trainer(tmp_path, max_steps=6)
    run.args.allow_changed_resume = True
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 6 and "max_steps was 4 and is 6. Resuming anyway." in caplog.text


def test_a_run_of_constant_rate_may_be_made_longer(tmp_path):
    options = {"lr_scheduler_type": "constant", "save_steps": 3}
    train(tmp_path / "long", {"max_steps": 9, **options})
    train(tmp_path / "short", {"max_steps": 6, **options})
    shutil.rmtree(tmp_path / "short" / "final")
    train(tmp_path / "short", {"max_steps": 9, **options})
    assert weights(tmp_path / "short") == weights(tmp_path / "long")


def test_a_checkpoint_of_the_stock_trainer_is_gone_on_from(unbroken, tmp_path, caplog):
    shutil.copytree(unbroken[0] / "checkpoints" / "checkpoint-22", tmp_path / "checkpoints" / "checkpoint-22")
    (tmp_path / "checkpoints" / "checkpoint-22" / MANIFEST).unlink()
    train(tmp_path)
    assert weights(tmp_path) == unbroken[1] and "does not record which run it belongs to" in caplog.text


def test_evaluating_does_not_change_training(unbroken, tmp_path):
    train(tmp_path, {"eval_strategy": "steps", "eval_steps": 5})
    assert weights(tmp_path) == unbroken[1]


def test_randomness_is_kept():
    before = random.random, np.random.random, lambda: torch.rand(()).item()
    with preserve_rng_state():
        inside = [draw() for draw in before]
    assert [draw() for draw in before] == inside


class Stream(torch.utils.data.IterableDataset):
    """A stream of 7 images whose order depends on the epoch, and which is over before the run is."""

    def __init__(self):
        self.rows, self.epoch = records(7), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for index in np.random.default_rng(self.epoch).permutation(7).tolist():
            yield {**self.rows[index], "draw": (0, self.epoch, index)}


def test_a_finished_run_takes_no_step_more(tmp_path):
    # Its last checkpoint is in the middle of an epoch; it was killed before the final weights were written.
    options = {"max_steps": 4, "lr_scheduler_type": "constant"}
    train(tmp_path, options)
    done = weights(tmp_path)
    shutil.rmtree(tmp_path / "final")
    train(tmp_path, options)
    assert weights(tmp_path) == done


def test_a_resumed_run_draws_what_the_unbroken_one_drew_in_each_epoch(tmp_path):
    def draws(max_steps):
        trainer = make_trainer(tmp_path, max_steps=max_steps, lr_scheduler_type="constant", save_total_limit=1)
        seen, collate = [], trainer.data_collator
        trainer.data_collator = lambda rows: seen.extend(row["draw"] for row in rows) or collate(rows)
        return trainer, seen

    first, whole = draws(9)
    first.train()
    assert {epoch: len({i for _, e, i in whole if e == epoch}) for epoch in range(3)} == {0: 11, 1: 11, 2: 11}
    assert whole[:11] != [(seed, 0, index) for seed, _, index in whole[11:22]]
    shutil.rmtree(tmp_path / "checkpoints")
    draws(4)[0].train()
    again, rest = draws(9)
    again.train(resume_from_checkpoint=True)
    # Of the second epoch four images were seen; the loader reads ahead, and no more than that.
    assert rest == whole[-len(rest) :] and len(rest) == 18


@pytest.mark.parametrize("stop", [3, 4, 5, 8, 10])
def test_a_stream_goes_on_in_the_pass_where_it_stopped(tmp_path, stop):
    def run(folder, **options):
        trainer = make_trainer(folder, save_steps=1, lr_scheduler_type="constant", save_total_limit=None, **options)
        trainer.train_dataset = Stream()
        return trainer

    whole = run(tmp_path / "whole", max_steps=12)
    whole.train()
    shutil.copytree(
        tmp_path / "whole" / "checkpoints" / f"checkpoint-{stop}",
        tmp_path / "again" / "checkpoints" / f"checkpoint-{stop}",
    )
    again = run(tmp_path / "again", max_steps=12)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == whole.state.global_step == 12
    for (name, one), (_, other) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
