"""Real runs of predicting in processes of their own, to be killed."""

import multiprocessing
import os
import signal
import time


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.evaluation.predict_runs", "sca_hf.testing", "sca_hf.evaluation.predict", "datasets"]
)


def tiny_captioner():
    import torch

    from sca_hf.evaluation.captioners import ScaCaptioner
    from sca_hf.processing.processing_sca import ScaProcessor
    from sca_hf.testing import tiny_config, tiny_model, tiny_tokenizer

    torch.set_num_threads(1)
    processor = ScaProcessor.from_config(tiny_config(), tiny_tokenizer())
    return ScaCaptioner(tiny_model(), processor, {"max_new_tokens": 8}, "tiny", "tiny")


def run(data, output, cache, rank=0, processes=1, num_workers=0, **settings):
    """Predicts to the end, or goes on to it."""
    import datasets

    from sca_hf.evaluation.predict import PredictSettings, predict

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes))
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    predict(tiny_captioner(), data, output, PredictSettings(**settings), progress=False, num_workers=num_workers)


def start(*arguments, processes=1, **settings):
    """Starts as many processes as share the work."""
    started = [
        CONTEXT.Process(target=run, args=arguments, kwargs={"rank": rank, "processes": processes, **settings})
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    return started


def finish(started):
    """Waits for a run that must end well."""
    for process in started:
        process.join(600)
        assert process.exitcode == 0, f"the run ended with {process.exitcode}"


def kill(started, part, lines, delay):
    """Kills a run some time after its first process's part has so many lines; False when that one was done before."""
    while started[0].is_alive() and _count(part) < lines:
        time.sleep(0.001)
    time.sleep(delay)
    for process in started:
        process.kill()
    for process in started:
        process.join()
    # The others may have written their parts by then; they wait for nobody.
    assert all(process.exitcode in (0, -signal.SIGKILL) for process in started)
    return started[0].exitcode == -signal.SIGKILL


def _count(part):
    return part.read_bytes().count(b"\n") if part.exists() else 0
