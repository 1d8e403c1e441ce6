"""Threads that load and build models at the same time, in whatever way: none spoils the library for the others."""

import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_tie_weights

from sca_hf import ScaForConditionalGeneration
from sca_hf.modeling import base_models_sca
from sca_hf.testing import tiny_config, tiny_image


# Threads in a process that other tests have loaded models in; alone the file takes half a minute.
pytestmark = pytest.mark.slow


@pytest.fixture
def whole(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def ways(whole, tmp_path):
    """What a thread may do, by name; each returns a model."""
    loaded = ScaForConditionalGeneration.from_pretrained(whole)
    loaded.save_pretrained(tmp_path / "mixer", include_base_models=False)
    for name in ("sam", "language_model"):
        getattr(loaded, name).save_pretrained(tmp_path / name)
    parts = (tmp_path / "sam", tmp_path / "language_model")
    return {
        "whole": lambda: ScaForConditionalGeneration.from_pretrained(whole),
        "auto": lambda: AutoModel.from_pretrained(whole),
        "half": lambda: ScaForConditionalGeneration.from_pretrained(whole, dtype=torch.bfloat16),
        "mixer": lambda: ScaForConditionalGeneration.from_pretrained(tmp_path / "mixer"),
        "parts": lambda: ScaForConditionalGeneration.from_sam_text_pretrained(*parts),
        "new": lambda: ScaForConditionalGeneration(tiny_config()),
        "swap": lambda: [loaded, loaded.swap_language_model(parts[1])][0],
    }


def test_threads_load_as_one_after_the_other_does(ways, whole, model, processor):
    before = vars(PreTrainedModel)["tie_weights"], torch.linspace, torch.nn.init.normal_, torch.get_default_dtype()
    inputs = processor(tiny_image(0), input_boxes=[[[3, 3, 40, 40]]], return_tensors="pt")
    expected = model.generate(**inputs).sequences
    names = list(ways) * 3
    barrier = threading.Barrier(len(names))

    def run(name):
        barrier.wait()
        return ways[name]()

    with ThreadPoolExecutor(len(names)) as pool:
        models = list(pool.map(run, names))
    assert before == (
        vars(PreTrainedModel)["tie_weights"], torch.linspace, torch.nn.init.normal_, torch.get_default_dtype()
    )  # fmt: skip
    for name, one in zip(names, models, strict=True):
        assert one.language_model.lm_head.weight is one.language_model.transformer.wte.weight, name
        dtypes = {weight.dtype for key, weight in one.named_parameters() if "positional" not in key}
        assert dtypes == {torch.bfloat16 if name == "half" else torch.float32}, name
        if name in ("whole", "auto", "mixer"):
            assert torch.equal(one.generate(**inputs).sequences, expected), name
    assert torch.equal(ScaForConditionalGeneration.from_pretrained(whole).generate(**inputs).sequences, expected)


def test_copies_of_the_code_share_one_lock():
    spec = importlib.util.find_spec(base_models_sca.__name__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy is not base_models_sca and copy._LOADING is base_models_sca._LOADING


def test_another_thread_that_builds_a_model_of_the_library_is_waited_for(whole):
    """Its moment is made long, with the library's own context."""
    inside, done = threading.Event(), threading.Event()

    def other():
        with no_tie_weights():
            inside.set()
            done.wait(1.0)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10.0)
    loaded = ScaForConditionalGeneration.from_pretrained(whole)
    thread.join()
    assert loaded.language_model.lm_head.weight is loaded.language_model.transformer.wte.weight
    assert PreTrainedModel.tie_weights.__name__ == "tie_weights"
    AutoModelForCausalLM.from_config(loaded.config.text_config)


def test_a_library_that_threads_have_spoiled_is_named(whole, monkeypatch):
    monkeypatch.setattr(base_models_sca, "_PATIENCE_SECONDS", 0.2)
    with no_tie_weights(), pytest.raises(RuntimeError, match=r"#41782.*[\s\S]*Restart"):
        ScaForConditionalGeneration.from_pretrained(whole)
