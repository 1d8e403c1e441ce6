"""A Hub on this machine, and a client of it in this process."""

import pytest
from hub_server import running_hub


@pytest.fixture(scope="module")
def hub():
    """One Hub for the tests of a file."""
    with running_hub() as server:
        yield server


@pytest.fixture
def online(hub, monkeypatch, tmp_path):
    """This process is online, with `hub` for its Hub, ann for its user and an empty cache: what HF_ENDPOINT does.

    The client reads its environment when it is imported, which was long ago.
    """
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transformers_hub, "_hf_api", None)
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "token-of-ann",
    }
    # For processes that a test starts.
    for name, value in {**environment, "HF_HUB_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return hub
