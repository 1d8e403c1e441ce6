"""Put under the README's programs what they print, with the bundled model of now.

    python docs/refresh.py

`tests/test_readme.py` fails where README and model say different things; this brings them together again.
"""

import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent
SHOWN = re.compile(r"(```python\n)(.*?)(```\n\n```text\n)(.*?)(```)", re.DOTALL)


def fill() -> None:
    """Runs each program of the README that has an output under it, and replaces that output."""
    readme = ROOT / "README.md"

    def run(shown: re.Match[str]) -> str:
        program = [sys.executable, "-c", shown[2]]
        printed = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return shown[1] + shown[2] + shown[3] + printed + shown[5]

    readme.write_text(SHOWN.sub(run, readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    fill()
