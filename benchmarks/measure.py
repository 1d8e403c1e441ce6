"""Time and memory of calls, on a CPU or a CUDA device."""

import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


_STATM = Path("/proc/self/statm")
_PAGE = 4096
_SAMPLE_SECONDS = 0.002


def interleaved(
    calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each call and its last result; every round runs all of them, so that drift hits all alike.

    On a CPU the time is that of the process, which other programs change little; on CUDA that between two events.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    if device.type == "cuda":
        for call in calls.values():
            call()
    for turn in range(repeats):
        for name, call in calls.items():
            results.pop(name, None)
            spent, results[name] = seconds_of(call, device)
            seconds[name].append(spent)
            print(f"  round {turn + 1}/{repeats} {name}: {spent:.3f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def seconds_of(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of one call, of the process or between two events of CUDA, and its result."""
    return _cuda_seconds(call) if device.type == "cuda" else _cpu_seconds(call)


def _cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def _cuda_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000, result


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most memory that `call` held above what was held before it: the weights, if they are loaded and used.

    On a CPU this is the resident set of the process (Linux), sampled by a thread.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _STATM.exists():
        raise RuntimeError("Peak memory on a CPU is read from /proc, which only Linux has.")
    before = resident_bytes()
    peak, done = [before], threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], resident_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return max(peak[0], resident_bytes()) - before


def resident_bytes() -> int:
    """Memory that the process holds (Linux)."""
    return int(_STATM.read_text().split()[1]) * _PAGE
