"""The programs of examples/ run as they stand, two steps instead of hundreds."""

import json
import runpy
from pathlib import Path

import pytest

from sca_hf import ScaForConditionalGeneration, ScaProcessor


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_finetuning_with_the_stock_trainer(tmp_path, monkeypatch, shared):
    signs = shared("data/road_signs_voc")
    program = (ROOT / "examples" / "finetune_stock_trainer.py").read_text()
    for steps, fewer in (("max_steps=600", 'max_steps=2, use_cpu=True, report_to="none"'), ("steps=1500", "steps=2")):
        assert program.count(steps) == 1
        program = program.replace(steps, fewer)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "my-boxes").symlink_to(signs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    runpy.run_path("program.py")
    assert json.loads(Path("runs/my-boxes/eval_results.json").read_text())["eval_loss"] > 0
    ScaForConditionalGeneration.from_pretrained("runs/my-boxes/model")
    ScaProcessor.from_pretrained("runs/my-boxes/model")
