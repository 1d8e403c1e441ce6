"""What the tests of self-training share."""

import pytest

from sca_hf.testing import save_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny teacher."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))
