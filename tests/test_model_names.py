"""A bundled model is one model wherever it is named, from any working directory; `sca-photo` where none is named."""

import os
import shutil
import subprocess
import sys
from importlib import resources

import pytest

import sca_hf.model_names as model_names
from sca_hf import bundled_model, region_captioning_pipeline
from sca_hf.cli import main
from sca_hf.evaluation.captioners.sca import ScaCaptioner, Segmenter
from sca_hf.model_names import check_repository, resolve_model
from sca_hf.testing import tiny_image


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_name_means_a_bundled_model_and_no_name_the_one_for_photographs():
    assert resolve_model("sca-photo") == resolve_model(None) == check_repository(None) == str(bundled_model())
    assert resolve_model("sca-tiny") == str(bundled_model("sca-tiny")) != str(bundled_model())
    with pytest.raises(ValueError, match="'sca-large' does not come with sca-hf; sca-photo and sca-tiny do"):
        bundled_model("sca-large")
    assert resolve_model("./sca-tiny") == "./sca-tiny" and resolve_model("gpt2") == "gpt2"


def test_a_folder_of_that_name_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "sca-tiny").mkdir()
    assert resolve_model("sca-tiny") == str(bundled_model("sca-tiny"))  # an empty folder is not a model
    (tmp_path / "sca-tiny" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"write \./sca-tiny"):
        resolve_model("sca-tiny")
    assert check_repository("./sca-tiny") == "./sca-tiny" and resolve_model(None) == str(bundled_model())
    monkeypatch.chdir(bundled_model().parent)  # there the folder of that name is the bundled model
    assert resolve_model("sca-tiny") == str(bundled_model("sca-tiny"))


def test_what_is_neither_a_folder_nor_a_repository_is_told_so(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "holds no config.json"), ("gpt2", "neither a folder"), ("a/b/c", "neither")):
        with pytest.raises(FileNotFoundError, match=message):
            check_repository(name)
    assert check_repository("owner/name") == "owner/name"


def test_a_checkout_without_links_is_one_clear_error(tmp_path, monkeypatch):
    assets = tmp_path / "package" / "assets"
    shutil.copytree(bundled_model("sca-tiny"), assets / "sca-tiny")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path / "package")
    assert bundled_model("sca-tiny") == assets / "sca-tiny"
    (assets / "sca-tiny" / "modeling_sca.py").write_text("../../modeling/modeling_sca.py")
    with pytest.raises(RuntimeError, match=r"git config core\.symlinks true.*git checkout"):
        bundled_model("sca-tiny")


def test_every_command_knows_the_name(capsys, tmp_path):
    tiny_image().save(tmp_path / "image.png")
    assert main(["info", "sca-tiny"]) == 0
    assert main(["estimate", "sca-tiny"]) == 0
    assert main(["caption", "image.png", "--model", "sca-tiny", "--box", "1,1,40,40", "--debug"]) == 0
    data = ["--data", "scenes:split=test,count=1"]
    assert main(["predict", "--model", "sca-tiny", *data, "--output", "said.jsonl", "--debug"]) == 0
    written = capsys.readouterr().out
    assert "whole repository" in written and "said.jsonl" in written


def test_captioners_know_the_name():
    assert ScaCaptioner.load("sca-photo").source == ScaCaptioner.load().source
    assert Segmenter.load("sca-tiny").sam.config.model_type == "sam"


def test_the_librarys_pipeline_is_built_without_the_code_of_a_repository():
    describe = region_captioning_pipeline()
    (region,) = describe(tiny_image(), input_boxes=[[1, 1, 40, 40]])
    assert region["caption"] and type(describe).__module__ == "sca_hf.modeling.pipeline_sca"


def test_the_module_does_not_import_torch():
    path = os.path.abspath(model_names.__file__)
    program = f"import runpy, sys; runpy.run_path({path!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
