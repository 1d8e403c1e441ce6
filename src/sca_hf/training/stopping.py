"""Training that ends before its last step: by a signal, by a callback, or because the model learns no more."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StoppedError(RuntimeError):
    """A run that something other than early stopping ended before its last step.

    The command's exit code is that of a temporary failure (EX_TEMPFAIL), or 128 + 15 after SIGTERM.
    """

    def __init__(self, message: str, by_signal: bool = False) -> None:
        super().__init__(message)
        self.exit_code = TerminatedError.exit_code if by_signal else 75


class DivergedError(RuntimeError):
    """A run whose loss or weights are no finite numbers any more; nothing of it is marked as finished."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, raised wherever the program is, as Ctrl+C is."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def sigterm_calls(act: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM calls `act`, in this process and not in those that it forks."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may ask for signals
        return
    process = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == process:
            act()
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def raise_terminated() -> None:
    """Ends whatever runs now."""
    raise TerminatedError


class StopOnRequest(TrainerCallback):
    """Ends training after the step in which it was asked to; every process after the same one.

    requested: Whether this process was asked to.
    running: Whether steps are being made; whoever asks before or after waits for none.
    """

    def __init__(self) -> None:
        self.requested = self.running = False

    def request(self) -> None:
        """Asks for the end; without steps to wait for it comes at once."""
        if not self.running:
            raise_terminated()
        self.requested = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes that steps follow."""
        self.requested, self.running = False, True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops if any process was asked to: a signal reaches some of them a step later."""
        if args.enable_jit_checkpoint and args.world_size > 1:
            asked = torch.tensor(int(self.requested), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.requested = bool(asked)
        if self.requested:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes that no steps follow."""
        self.running = False


def early_stopping_of(callbacks: list[TrainerCallback]) -> EarlyStoppingCallback | None:
    """Returns the callback whose patience is at its end, if there is one."""
    stopping = [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]
    return next((one for one in stopping if one.early_stopping_patience_counter >= one.early_stopping_patience), None)
