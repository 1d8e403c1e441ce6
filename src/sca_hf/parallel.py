"""Work on a stream, ahead of whoever reads its results: by processes that share the model's memory, in order."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset


_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

# What a worker takes beside the weights, which all share: measured for SAM ViT-B and GPT-2 at 1024 px, where the
# encoder's attention sets it, and for sca-tiny at 192 px.
_WORKER_BYTES, _ENCODER_BYTES = 1 << 29, 5 << 29


def run_ahead(function: Callable[[_Task], _Result], tasks: Iterable[_Task], num_workers: int = 0) -> Iterator[_Result]:
    """Yields what a function returns for each task, in order; workers are at most two tasks each ahead.

    An error of the function is raised here, in its turn. However this ends, the workers end with it.

    Args:
        function: It runs in forked processes of one thread each, which see what there is in memory now.
        tasks: Read here, as they are needed.
        num_workers: How many processes; 0 runs the function here.

    Raises:
        RuntimeError: A worker was killed.
    """
    if not num_workers:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("fork")
    ended, alive = os.pipe()  # which is at its end once this process closes it, or is killed

    def end_with_parent() -> None:
        os.close(alive)
        threading.Thread(target=lambda: os._exit(len(os.read(ended, 1))), daemon=True).start()

    loader: DataLoader[Any] = DataLoader(
        _Mapped(function),
        batch_size=None,
        sampler=tasks,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=lambda _: end_with_parent(),
    )
    results = iter(loader)  # kept, as it waits for its workers when it is dropped
    try:
        for result, error in results:
            if error is not None:
                raise error
            yield result
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RuntimeError(
            f"a worker was killed, perhaps for want of memory: use fewer (--num-workers). {error}"
        ) from None
    finally:
        os.close(alive)
        os.close(ended)


class _Mapped(Dataset[Any], Generic[_Task, _Result]):
    """A function in the place of a data set, and tasks in that of its indices."""

    def __init__(self, function: Callable[[_Task], _Result]) -> None:
        self.function = function

    def __getitem__(self, task: _Task) -> tuple[_Result | None, Exception | None]:
        try:
            return self.function(task), None
        except Exception as error:  # noqa: BLE001, it is raised where the result is read, as it is
            try:
                pickle.loads(pickle.dumps(error))  # noqa: S301, it is our own
            except Exception:  # noqa: BLE001, whatever its class does when it is copied
                error = RuntimeError(f"{type(error).__name__}: {error}")
            return None, error


def _as_it_is(result: Any) -> Any:
    return result


def count_workers(wanted: int | None, model: Any) -> int:
    """Returns how many processes are to share a model.

    Args:
        wanted: As somebody chose it. None: one per thread of a CPU (`OMP_NUM_THREADS`); 0 on other devices, on other
            systems than Linux, where there is one thread, as in each process of torchrun, and where half of the memory
            would not do.
        model: A [`ScaForConditionalGeneration`].

    Raises:
        ValueError: Workers are asked for where there can be none.
    """
    possible = model.device.type == "cpu" and sys.platform == "linux"
    if wanted and not possible:
        raise ValueError(f"num_workers is {wanted}, but workers share a model on the CPU under Linux only: pass 0.")
    if wanted is not None:
        return wanted
    threads = torch.get_num_threads()
    if not possible or threads < 2:
        return 0
    # Of all memory, not of what is free: a run that is resumed should not round otherwise.
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    each = _WORKER_BYTES + _ENCODER_BYTES * (model.config.image_frame.side / 1024) ** 4
    return threads if threads * each < half else 0


def images_at_once(model: Any) -> int:
    """Returns how many images a model takes together: up to 8, on a CPU of no more pixels than one of 1024 px."""
    return min(8, max(1, 1024**2 // model.config.image_frame.side**2)) if model.device.type == "cpu" else 8
