"""Work by processes that share the memory: in order, ahead by little, and never left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sca_hf.parallel import count_workers, run_ahead
from sca_hf.testing import tiny_model


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")
PARENT = """
import os, time
from sca_hf.parallel import run_ahead

def work(number):
    print(os.getpid(), flush=True)
    time.sleep(60 if number > 1 else 0)

for _ in run_ahead(work, range(8), 2):
    pass
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, seconds=5.0):
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


@pytest.mark.parametrize("workers", [0, 3])
def test_results_are_in_the_order_of_the_tasks(workers):
    def work(number):
        time.sleep(0.05 * (number % 3 == 0))
        return number, os.getpid(), torch.get_num_threads()

    results = list(run_ahead(work, iter(range(20)), workers))
    assert [number for number, _, _ in results] == list(range(20))
    processes = {pid for _, pid, _ in results}
    assert len(processes) == max(1, workers) and (os.getpid() in processes) == (not workers)
    assert not workers or {threads for _, _, threads in results} == {1}


def test_tasks_are_read_a_few_ahead_and_no_further():
    read = []

    def tasks():
        for number in range(1000):
            read.append(number)
            yield number

    results = run_ahead(lambda number: number, tasks(), 2)
    for _ in range(10):
        next(results)
    assert 10 <= len(read) <= 10 + 2 * 2


class OddError(ValueError):
    """Cannot be copied: it takes two values, and keeps one."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("error, kind", [(KeyError("here"), KeyError), (OddError(1, 2), RuntimeError)])
def test_an_error_comes_in_its_turn_and_as_it_is(error, kind):
    def work(number):
        if number == 3:
            raise error
        return number

    results = run_ahead(work, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(kind) as raised:
        next(results)
    assert str(raised.value) == (str(error) if kind is KeyError else "OddError: 1 and 2")


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do():
    def work(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(RuntimeError, match=r"a worker was killed.*--num-workers"):
        list(run_ahead(work, range(9), 2))


def test_workers_end_with_their_reader_whatever_they_are_doing():
    def work(number):
        time.sleep(60 if number > 1 else 0)
        return os.getpid()

    results = run_ahead(work, range(9), 2)
    pids = [next(results), next(results)]
    began = time.monotonic()
    results.close()
    assert gone(pids) and time.monotonic() - began < 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_a_parent_that_is_killed(number):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        pids = {int(parent.stdout.readline()) for _ in range(4)}
        parent.send_signal(number)
        parent.wait(10)
        assert len(pids) == 2 and gone(pids)


def test_workers_are_as_many_as_threads_where_processes_can_share_the_model(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert count_workers(None, model) == 2 and count_workers(0, model) == 0 and count_workers(5, model) == 5
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    assert count_workers(None, model) == 0, "the memory would not do"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert count_workers(None, model) == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert count_workers(None, model) == 0
    with pytest.raises(ValueError, match="num_workers is 2, but workers share a model on the CPU under Linux only"):
        count_workers(2, model)
