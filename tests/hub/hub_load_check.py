"""Load repositories from the Hub in three lines where this package is not installed, and describe regions.

    python tests/hub/hub_load_check.py RESULTS.npz REPOSITORY@REVISION ...

Run in fresh processes; what they find goes into RESULTS.npz under the repositories' names.
"""

import sys
from pathlib import Path


def main(results: str, *repositories: str) -> None:
    """Load and describe each."""
    sys.modules["sca_hf"] = None  # an import of it fails from here on
    sys.path.append(str(Path(__file__).parents[1]))

    import numpy as np
    from remote_code_check import describe
    from transformers import AutoModel, AutoProcessor

    found = {}
    for one in repositories:
        name, revision = one.split("@")
        model = AutoModel.from_pretrained(name, trust_remote_code=True, revision=revision)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=True, revision=revision)
        described = describe(model, processor)
        found |= {f"{name}/{key}": value for key, value in described.items()}
        found[f"{name}/module"] = type(model).__module__
    np.savez(results, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
