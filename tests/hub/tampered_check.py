"""Try to load each repository in three lines where this package is not installed; print what was said, as JSON.

python tests/hub/tampered_check.py REPOSITORY ...
"""

import json
import sys


def main(*repositories: str) -> None:
    """None stands for a repository that was loaded."""
    sys.modules["sca_hf"] = None  # an import of it fails from here on

    from transformers import AutoModel, AutoProcessor

    messages = []
    for repository in repositories:
        try:
            AutoProcessor.from_pretrained(repository, trust_remote_code=True)
            AutoModel.from_pretrained(repository, trust_remote_code=True)
            messages.append(None)
        except Exception as error:  # noqa: BLE001 (each is what the test is about)
            messages.append(str(error))
    print(json.dumps(messages))


if __name__ == "__main__":
    main(*sys.argv[1:])
