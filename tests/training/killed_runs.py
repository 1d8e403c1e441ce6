"""Real training runs in processes of their own, to be killed: what the tests of resuming and of full disks start.

Processes are forked from a server that has imported everything, so that a run starts at once.
"""

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.killed_runs", "sca_hf.testing", "sca_hf.training.trainer"])


def records(count=11):
    """Images of two regions each, the second with two captions to choose from."""
    from sca_hf.testing import CAPTIONS, tiny_image

    boxes = [[5, 5, 40, 30], [30, 20, 70, 55]]
    return [
        {
            "image": tiny_image(seed),
            "image_id": str(seed),
            "width": 80,
            "height": 60,
            "task": "caption",
            "regions": [
                {
                    "region_id": str(k),
                    "box": boxes[k],
                    "points": [[boxes[k][0] + 3.0, boxes[k][1] + 3.0]],
                    "labels": [1],
                    "captions": [CAPTIONS[(seed + k) % 5], CAPTIONS[(seed + 2 * k) % 5]][: k + 1],
                }
                for k in range(2)
            ],
        }
        for seed in range(count)
    ]


def make_trainer(folder, cache=None, slow_rank=None, **arguments):
    """A Trainer of the tiny model with dropout in it, so that every generator of random numbers matters.

    slow_rank: the process of several that takes its time to write its state of random numbers.
    """
    import torch
    from torch import nn

    from sca_hf.processing.processing_sca import ScaProcessor
    from sca_hf.testing import tiny_config, tiny_model, tiny_tokenizer
    from sca_hf.training.arguments import ScaTrainingArguments
    from sca_hf.training.trainer import ScaTrainer

    torch.set_num_threads(1)
    model = tiny_model()
    # Dropout in the trained part; no parameter's name changes.
    model.mixer.register_forward_hook(lambda module, args, output: nn.functional.dropout(output, 0.1, module.training))
    settings = dict(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        save_steps=2,
        max_steps=24,
        save_total_limit=2,
        logging_steps=5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        prompt_probabilities={"jittered_box": 0.5, "point": 0.5},
        regions_per_image=1,
        embedding_cache=None if cache is None else str(cache),
        eval_generate=False,
    )
    arguments = ScaTrainingArguments(str(folder / "checkpoints"), **(settings | arguments))
    processor = ScaProcessor.from_config(tiny_config(), tiny_tokenizer())
    trainer = ScaTrainer(model, arguments, records(), records(3), processor)
    if slow_rank == arguments.process_index:
        trainer._save_rng_state = lambda folder, save=trainer._save_rng_state: (time.sleep(0.5), save(folder))
    return trainer


def train(folder, options=None):
    """Goes on from the last checkpoint of a folder, if any, to the end: weights in `final`."""
    from sca_hf.files import staged
    from sca_hf.training.checkpoint.integrity import last_checkpoint

    trainer = make_trainer(folder, **(options or {}))
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    if trainer.args.should_save and not trainer.stopped:
        with staged(folder / "final") as part:
            trainer.model.save_pretrained(part)


def train_until_full(folder, limit=None):
    """Trains until a checkpoint cannot be written, the error in `error.txt`.

    limit: after the first checkpoint, files may grow to this share of the largest file in it.
    """
    import resource

    from transformers import TrainerCallback

    from sca_hf.training.checkpoint.integrity import CheckpointError

    class Limit(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            largest = max(path.stat().st_size for path in (folder / "checkpoints" / "checkpoint-2").iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit * largest), resource.RLIM_INFINITY))

    trainer = make_trainer(folder, max_steps=6)
    if limit is not None:
        trainer.add_callback(Limit())
    try:
        trainer.train()
    except CheckpointError as error:
        (folder / "error.txt").write_text(str(error))


def start(folder, **options):
    """Starts a training run in a process of its own."""
    process = CONTEXT.Process(target=train_alone, args=(folder, options))
    process.start()
    return process


def start_pair(folder, **options):
    """Starts a run of two processes, which share every batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {"ddp_backend": "gloo", "per_device_train_batch_size": 1, **options}
    pair = [CONTEXT.Process(target=train_as_rank, args=(folder, rank, port, arguments)) for rank in range(2)]
    for process in pair:
        process.start()
    return pair


def train_alone(folder, options):
    """Trains in a process of its own."""
    # Workers that load data are children of this process, and end when it is killed.
    multiprocessing.set_start_method("fork", force=True)
    train(folder, options)


def train_as_rank(folder, rank, port, options):
    """One process of two."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    train(folder, options)


def finish(*processes):
    """Waits for a run that must end well."""
    for process in processes:
        process.join(600)
        assert process.exitcode == 0, f"the run ended with {process.exitcode}"


def kill_after(process, seconds):
    """Kills a run after a time; False when it was done before."""
    process.join(seconds)
    return _kill(process)


def kill_while_saving(folder, process, delay, saves=1):
    """Kills a run some time after it began to write its n-th checkpoint from now on; False when it was done before."""
    seen = set()
    while process.is_alive() and len(seen) < saves:
        seen |= {path.name for path in Path(folder / "checkpoints").glob("_tmp-checkpoint-*")}
        time.sleep(0.0002)
    time.sleep(delay)
    return _kill(process)


def _kill(process):
    if not process.is_alive():
        return False
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def weights(folder):
    """The final weights of a run, as bytes by name."""
    from safetensors.torch import load_file

    return {k: v.numpy().tobytes() for k, v in load_file(folder / "final" / "model.safetensors").items()}


def fill_cache(folder, count, made=None):
    """Fills an embedding cache with as many images."""
    import torch

    from sca_hf.processing.processing_sca import ScaProcessor
    from sca_hf.testing import tiny_config, tiny_model, tiny_tokenizer
    from sca_hf.training.embedding_cache import CachedRecords, EmbeddingCache

    torch.set_num_threads(1)
    model = tiny_model()
    processor = ScaProcessor.from_config(tiny_config(), tiny_tokenizer())
    number = CachedRecords(records(count), EmbeddingCache(folder, model, processor)).fill(4, progress=False)
    if made is not None:
        made.put(number)
