"""The Trainer's pushes: what they hold, and that a killed and resumed run leaves the history of an unbroken one."""

import os
import signal
import threading

import pytest
from huggingface_hub import HfApi
from publishing import CONTEXT, go_online

from sca_hf import ScaForConditionalGeneration
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.trainer import ScaTrainer
from tests.training.killed_runs import make_trainer


def train_and_push(url, folder, repo_id):
    """Train from the last checkpoint, if any, to the end; every checkpoint is pushed, and then the result."""
    from sca_hf.training.checkpoint.integrity import last_checkpoint

    go_online(url)
    options = dict(push_to_hub=True, hub_model_id=repo_id, hub_strategy="every_save", hub_always_push=True)
    trainer = make_trainer(folder, max_steps=8, save_steps=2, **options)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    trainer.push_to_hub()


def run(hub, folder, repo_id, kill_after=None):
    """Train in a process of its own, killed once the Hub has received so many bytes; its exit code."""
    process = CONTEXT.Process(target=train_and_push, args=(hub.url, folder, repo_id))
    start, done = hub.received, threading.Event()

    def kill(received):
        if kill_after is not None and received - start > kill_after and not done.is_set():
            done.set()
            os.kill(process.pid, signal.SIGKILL)

    hub.on_received = kill
    try:
        process.start()
        process.join(600)
    finally:
        hub.on_received = None
    return process.exitcode


def history(hub, name):
    """Titles and weights of all commits, the oldest first."""
    commits = reversed(hub.repository(name).history())
    return [
        (c.title, c.files["model.safetensors"].sha256 if "model.safetensors" in c.files else None) for c in commits
    ]


@pytest.mark.slow
def test_a_killed_run_leaves_the_history_of_an_unbroken_one(online, tmp_path):
    start = online.received
    assert run(online, tmp_path / "unbroken", "ann/unbroken") == 0
    total = online.received - start
    titles = [title for title, _ in history(online, "ann/unbroken")]
    steps = [f"Training in progress, step {step}" for step in (2, 4, 6, 8)]
    assert titles == ["initial commit", *steps, "End of training"]
    # In the middle of a push, and in the middle of a later one; what the Hub has already would not be sent again.
    online.store.objects.clear()
    for share in (0.3, 0.3):
        assert run(online, tmp_path / "killed", "ann/killed", kill_after=int(share * total)) == -signal.SIGKILL
    assert run(online, tmp_path / "killed", "ann/killed") == 0
    assert history(online, "ann/killed") == history(online, "ann/unbroken")


@pytest.mark.slow
def test_every_push_is_a_repository_that_loads(online, tmp_path):
    planted = ["passwords.txt", "patients/scan 1.png", ".env", "[x]#.md", "x.bin"]
    for name in planted:
        (tmp_path / "run" / "checkpoints" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "checkpoints" / name).write_text("private")
    assert run(online, tmp_path / "run", "ann/loads") == 0
    for commit in online.repository("ann/loads").history()[:-1]:
        assert not {"training_args.bin", ".gitignore", *planted} & set(commit.files), "a pickle, and private things"
        assert {"modeling_sca.py", "validation_sca.py", "processing_sca.py", "config.json"} <= set(commit.files)
        assert ScaForConditionalGeneration.from_pretrained("ann/loads", revision=commit.id)


def test_bases_in_folders_are_refused_before_training(online, make_model, processor, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    model = ScaForConditionalGeneration.from_pretrained(tmp_path / "model")
    arguments = ScaTrainingArguments(
        str(tmp_path / "run"), push_to_hub=True, hub_model_id="ann/never", use_cpu=True, report_to="none"
    )
    with pytest.raises(ValueError, match="would name folders on this machine"):
        ScaTrainer(model, arguments, train_dataset=[], processing_class=processor)
    assert not HfApi(online.url).repo_exists("ann/never")
