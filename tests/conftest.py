"""What all tests have: no network, the same random numbers, tiny models built once and copied for each test."""

import copy
import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings


# Examples are the same on every run: a failure that comes and goes helps nobody.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded():
    from transformers import set_seed

    set_seed(0)


@pytest.fixture(scope="session")
def shared():
    """`shared("data/road_signs_voc")`: what lies outside of the repository, below $SCA_SHARED, or a skip."""
    root = Path(os.environ.get("SCA_SHARED", Path(__file__).parents[2] / "shared")).resolve()

    def find(name):
        if not (root / name).exists():
            pytest.skip(f"{root / name} is not there (SCA_SHARED names the folder that {name} lies in)")
        return root / name

    return find


@pytest.fixture(scope="session")
def built_models():
    """Tiny models by the arguments they were built with; tests take copies."""
    return {}


@pytest.fixture
def make_model(built_models):
    """`make_model("gpt2", "sam_hq")`: a copy, the test's own, of what `testing.tiny_model` builds."""
    from sca_hf.testing import tiny_model

    def make(family="gpt2", sam_type="sam", **overrides):
        key = repr((family, sam_type, sorted(overrides.items())))
        if key not in built_models:
            built_models[key] = tiny_model(family, sam_type, **overrides)
        return copy.deepcopy(built_models[key])

    return make


@pytest.fixture
def model(make_model):
    """A tiny SAM, mixer and GPT-2, the test's own."""
    return make_model()


@pytest.fixture(scope="session")
def tokenizer():
    from sca_hf.testing import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def processor(tokenizer):
    """The processor that fits the tiny models."""
    from sca_hf.processing.processing_sca import ScaProcessor
    from sca_hf.testing import tiny_config

    return ScaProcessor.from_config(tiny_config(), tokenizer)


@pytest.fixture(scope="module")
def engine():
    """The server's engine, with sca-tiny."""
    from sca_hf.serving import Engine

    one = Engine(["sca-tiny"], device="cpu")
    yield one
    one.close()
