"""Folders to publish, and uploads in processes of their own that can be killed."""

import multiprocessing
import os
import signal
import threading

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.testing import tiny_config, tiny_model, tiny_tokenizer


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.killed_runs", "sca_hf.hub.publish"])
MIXER = dict(num_hidden_layers=3, num_attention_heads=4, mlp_dim=64)


def save_whole(folder, seed=0):
    """A whole repository with its processor."""
    tiny_model(seed=seed).save_pretrained(folder)
    return with_processor(folder)


def with_processor(folder):
    ScaProcessor.from_config(tiny_config(), tiny_tokenizer()).save_pretrained(folder)
    return folder


def save_mixer(folder, sam, language_model):
    """A mixer-only repository over a SAM and a language model: folders or repository ids."""
    model = ScaForConditionalGeneration.from_sam_text_pretrained(sam, language_model, mixer_config=MIXER)
    model.save_pretrained(folder, include_base_models=False)
    return with_processor(folder)


def go_online(url):
    """Make this process, which read its environment long ago, a client of the Hub at `url`."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    transformers_hub._hf_api = None
    os.environ["HF_TOKEN"] = "token-of-ann"


def upload_alone(url, repo_id, folder):
    """What `sca-hf publish` does once everything has been checked."""
    from huggingface_hub import HfApi

    from sca_hf.hub.publish import upload

    go_online(url)
    upload(HfApi(url), repo_id, folder)


def upload_and_kill(hub, repo_id, folder, after):
    """Upload in a process that gets SIGKILL once the Hub has so many bytes of it; False if it was done before."""
    process = CONTEXT.Process(target=upload_alone, args=(hub.url, repo_id, folder))
    stop, start = threading.Event(), hub.received

    def kill(received):
        if received - start >= after and not stop.is_set():
            stop.set()
            os.kill(process.pid, signal.SIGKILL)

    hub.on_received = kill
    try:
        process.start()
        process.join(300)
    finally:
        hub.on_received = None
    return process.exitcode == -signal.SIGKILL
