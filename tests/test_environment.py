import os
import subprocess
import sys
from pathlib import Path

import pytest

import sca_hf


@pytest.mark.parametrize(
    "program",
    ["from sca_hf import ScaProcessor", "import sca_hf.captioning", "from sca_hf.__main__ import main; main()"],
)
def test_a_torchvision_of_another_torch_is_named_with_the_fix(program, tmp_path):
    (tmp_path / "torchvision").mkdir()
    broken = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    info = tmp_path / "torchvision-99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 99.0\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(sca_hf.__file__).parents[1])])
    command = [sys.executable, "-c", program, "caption", "x.png"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    told = done.stderr.splitlines()[-1]
    assert "rror: torchvision 99.0 does not work with torch" in told and "pip uninstall" in told
