"""Load what save_models.py saved, in three lines and without this package, with the transformers of this process.

    python tests/versions/load_models.py RESULT.json FOLDER ...

RESULT.json gets, for each repository, "equal" or what is not.
"""

import json
import sys
import traceback
from pathlib import Path


sys.path.append(str(Path(__file__).parents[1]))
sys.modules["sca_hf"] = None  # an import of it fails from here on


def compare(repository: Path, said: dict) -> str:
    """Load and describe one repository."""
    from remote_code_check import describe
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(repository, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    found = describe(model, processor)
    different = [name for name, value in said.items() if found[name].tolist() != value]
    return f"other {' and '.join(different)}" if different else "equal"


def main(result: str, *folders: str) -> None:
    """Compare them all; a failure of one is noted and does not keep the others from being tried."""
    results = {}
    for folder in map(Path, folders):
        for name, said in json.loads((folder / "said.json").read_text()).items():
            try:
                results[f"{folder.name}/{name}"] = compare(folder / name, said)
            except Exception as error:  # noqa: BLE001 (whatever an older or newer library raises is the result)
                traceback.print_exc()
                results[f"{folder.name}/{name}"] = f"{type(error).__name__}: {error}"
    Path(result).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
