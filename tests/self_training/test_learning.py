"""The third stage and the rounds: what is learned from, what a kill changes (nothing), and when the rounds end."""

import json
import shutil
from itertools import pairwise

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from taught import (
    finish,
    judge_command,
    kill_when,
    make_pictures,
    propose_command,
    start,
    write_recipe,
)

from sca_hf import ScaForConditionalGeneration
from sca_hf.captioning import load
from sca_hf.cli import main
from sca_hf.self_training import RoundSettings, label_records, learn, rounds
from sca_hf.self_training.rounds import _averaged
from sca_hf.testing import save_tiny_model
from sca_hf.training.checkpoint.integrity import CheckpointError
from sca_hf.training.recipe.run import build_datasets
from sca_hf.training.recipe.schema import DataSection, load_recipe


@pytest.fixture(scope="module")
def judged(model, tmp_path_factory):
    """A folder with a finished manifest."""
    place = tmp_path_factory.mktemp("judged")
    make_pictures(place)
    assert main(propose_command(place, place / "proposals", model, "--quiet", "--views", "box", "flip")) == 0
    judges = ["--judges", "score", "agreement", "stability", "--tiles", "0", "--quiet"]
    assert main(judge_command(place / "proposals", place / "judged", model, *judges)) == 0
    return place


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_kept_labels_are_learned_beside_true_ones_and_can_be_traced(judged, model, tmp_path, capsys):
    manifest = judged / "judged" / "manifest.parquet"
    recipe = write_recipe(tmp_path, model)
    command = ["self-train", "learn", recipe, "--manifest", str(manifest), "--output", str(tmp_path / "out")]
    assert main([*command, "--share", "0.25", "--training.max_steps=4"]) == 0
    assert "eval_loss" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "self_training.json").read_text())
    (source,) = about["labels"]
    kept = sum(row["kept"] for row in parquet.read_table(manifest).to_pylist())
    assert about["share"] == 0.25 and source["labels"] == kept
    assert source["made"]["run"]["model"] and source["made"]["run"]["versions"]["sca-hf"]
    learned = load_recipe(tmp_path / "out" / "recipe.yaml")
    train, evaluation = build_datasets(learned.data)
    sources = train["source"]
    assert {"jsonl", "self-trained"} == set(sources) and learned.data.pseudo_share == 0.25
    assert sources.count("jsonl") > sources.count("self-trained") and len(evaluation) == 2
    said = {
        caption
        for row in train.select([k for k, name in enumerate(sources) if name == "self-trained"])
        for region in row["regions"]
        for caption in region["captions"]
    }
    assert said <= {
        c for record in label_records(manifest) for region in record["regions"] for c in region["captions"]
    }
    assert (
        "self-trained" in json.loads((tmp_path / "out" / "model" / "config.json").read_text())["scope"]["trained_on"]
    )


def test_a_manifest_edited_by_hand_is_what_is_learned(judged, model, tmp_path):
    manifest = tmp_path / "judged" / "manifest.parquet"
    shutil.copytree(judged / "judged", tmp_path / "judged")
    shutil.copytree(judged / "proposals", tmp_path / "proposals")
    recipe = load_recipe(write_recipe(tmp_path, model, max_steps=2))
    table = parquet.read_table(manifest)
    rows = [{**row, "caption": "a blue ring"} for row in table.to_pylist() if row["kept"]][:2]
    parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), manifest)
    learn(recipe, [manifest], progress=False)
    (labels,) = (tmp_path / "taught" / "labels").glob("*.jsonl")
    regions = [region for line in labels.read_text().splitlines() for region in json.loads(line)["regions"]]
    assert [region["captions"] for region in regions] == [["a blue ring"]] * 2
    parquet.write_table(pyarrow.Table.from_pylist(rows[:1], table.schema), manifest)
    held = labels.read_bytes()
    labels.write_bytes(held[: len(held) // 2])
    with pytest.raises(CheckpointError, match="is of another run"):
        learn(recipe, [manifest], progress=False)
    parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), manifest)
    assert learn(recipe, [manifest], progress=False).found_finished and labels.read_bytes() == held


def test_names_are_learned_as_names(judged, model, tmp_path):
    manifest = tmp_path / "judged" / "manifest.parquet"
    shutil.copytree(judged / "judged", tmp_path / "judged")
    shutil.copytree(judged / "proposals", tmp_path / "proposals")
    table = parquet.read_table(manifest)
    rows = [{**row, "task": "recognition", "caption": "ring"} for row in table.to_pylist() if row["kept"]]
    parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), manifest)
    for record in label_records(manifest):
        assert record["task"] == "recognition" and {region["category"] for region in record["regions"]} == {"ring"}


def test_a_detail_encoder_cannot_learn_from_captions(judged, model, tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, model, detail_steps=5))
    with pytest.raises(ValueError, match=r"manifest\.parquet: training\.detail_steps needs names.*--task recognition"):
        learn(recipe, [judged / "judged" / "manifest.parquet"])
    with pytest.raises(ValueError, match="propose with --task recognition"):
        rounds.run_rounds(recipe, [], model)


def test_captions_of_a_length_are_proposed_judged_and_learned_as_such(tmp_path, monkeypatch):
    tasks = ["recognition", "caption", "caption:short", "caption:de", "caption:de:short"]
    teacher = save_tiny_model(tmp_path / "teacher", mixer_config={"tasks": tasks})
    make_pictures(tmp_path, 2)
    asked = []
    generate, score = ScaForConditionalGeneration.generate, ScaForConditionalGeneration.score_captions

    def noted(method):
        def called(self, *arguments, **inputs):
            asked.append(set(inputs["task_ids"].flatten().tolist()))
            return method(self, *arguments, **inputs)

        return called

    monkeypatch.setattr(ScaForConditionalGeneration, "generate", noted(generate))
    monkeypatch.setattr(ScaForConditionalGeneration, "score_captions", noted(score))
    more = ["--length", "short", "--language", "de", "--quiet"]
    assert main(propose_command(tmp_path, tmp_path / "proposals", teacher, *more)) == 0
    assert main(judge_command(tmp_path / "proposals", tmp_path / "judged", teacher, "--tiles", "0", "--quiet")) == 0
    assert len(asked) > 6 and {4} == set().union(*asked), "every view and judge asks for the same"
    entries = [json.loads(line) for line in (tmp_path / "proposals" / "records.jsonl").read_text().splitlines()]
    views = {view["view"] for entry in entries for record in entry["records"] for view in record["views"]}
    assert "beams" in views and "flip" not in views, "no rule knows the sides of German"
    for record in label_records(tmp_path / "judged" / "manifest.parquet"):
        assert record["task"] == "caption"
        assert all(one["lengths"] == ["short"] and one["languages"] == ["de"] for one in record["regions"])


def test_pictures_that_are_evaluated_on_are_not_learned_from(judged, model, tmp_path, caplog):
    recipe = load_recipe(write_recipe(tmp_path, model))
    _, held_out = build_datasets(recipe.data)
    ids = set(held_out["image_id"])
    lines = (tmp_path / "true.jsonl").read_text().splitlines()
    (tmp_path / "made.jsonl").write_text("\n".join(lines))
    spec = {"format": "jsonl", "path": str(tmp_path / "made.jsonl"), "as": "made"}
    train, evaluation = build_datasets(DataSection(**{**recipe.data.model_dump(), "pseudo": [spec]}))
    made = {row["image_id"] for row in train.remove_columns("image") if row["source"] == "made"}
    assert len(made) == 6 and not made & ids and set(evaluation["image_id"]) == ids
    (tmp_path / "made.jsonl").write_text("\n".join(line for line in lines if json.loads(line)["image_id"] in ids))
    with pytest.raises(ValueError, match=r"data\.pseudo: all pictures of made are evaluated on"):
        build_datasets(DataSection(**{**recipe.data.model_dump(), "pseudo": [spec]}))


def test_half_of_the_pictures_have_labels_of_the_model_unless_said_otherwise(judged, model, tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, model))
    made = {"format": "scenes", "split": "train", "count": 40, "as": "made"}
    for share in (0.5, 0.2):
        section = DataSection(**{**recipe.data.model_dump(), "pseudo": [made], "pseudo_share": share})
        sources = build_datasets(section)[0]["source"]
        assert abs(sources.count("made") / len(sources) - share) < 0.15
    with pytest.raises(ValueError, match=r"data\.pseudo_share is 1\.0, expected a fraction between 0 and 1"):
        DataSection(train=[made], pseudo=[made], pseudo_share=1)
    with pytest.raises(ValueError, match=r"share is 1\.5, expected a fraction between 0 and 1"):
        learn(recipe, [judged / "judged" / "manifest.parquet"], share=1.5)


def test_a_link_that_leads_out_of_the_pictures_is_refused(judged, model, tmp_path):
    shutil.copytree(judged / "judged", tmp_path / "judged")
    shutil.copytree(judged / "proposals", tmp_path / "proposals")
    for picture in (tmp_path / "proposals" / "pictures").iterdir():
        picture.rename(tmp_path / picture.name)
        picture.symlink_to(tmp_path / picture.name)
    recipe = load_recipe(write_recipe(tmp_path, model))
    with pytest.raises(ValueError, match=r"is a link that leads out of|is not in"):
        learn(recipe, [tmp_path / "judged" / "manifest.parquet"], progress=False)


@pytest.mark.slow
def test_learning_killed_at_any_moment_ends_with_the_same_weights(judged, model, tmp_path):
    recipe = write_recipe(tmp_path, model)
    manifest = str(judged / "judged" / "manifest.parquet")

    def command(name):
        return ["self-train", "learn", recipe, "--manifest", manifest, "--output", str(tmp_path / name)]

    finish(start(command("whole"), tmp_path / "cache"))
    killed = 0
    for step in (None, 2, 4):
        mark = tmp_path / "killed" / ("labels" if step is None else f"checkpoint-{step}")
        killed += kill_when(start(command("killed"), tmp_path / "cache"), mark.exists)
    assert killed >= 2
    finish(start(command("killed"), tmp_path / "cache"))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def run_command(place, recipe, *more):
    sources = [str(place / "photos"), "--boxes", str(place / "boxes.json"), "--views", "box", "flip"]
    judges = ["--judges", "score", "agreement", "--min-class", "3", "--tiles", "4", "--device", "cpu"]
    return ["self-train", "run", recipe, *sources, *judges, *more]


@pytest.mark.slow
def test_rounds_go_on_while_the_held_out_set_rises_and_the_best_model_is_kept(judged, model, tmp_path, capsys):
    recipe = write_recipe(tmp_path, model, max_steps=2)
    command = run_command(judged, recipe, "--output", str(tmp_path / "out"), "--rounds", "2", "--ema", "0.5")
    command += ["--metric", "eval_loss"]
    assert main([*command, "--quiet"]) == 0
    said = capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "rounds.json").read_text())
    scores = [one["score"] for one in about["rounds"]]
    assert about["metric"] == "eval_loss" and 2 <= len(scores) <= 3
    # Each but the last was better than the one before.
    assert all(later < former for former, later in pairwise(scores[:-1]))
    best = min(range(len(scores)), key=scores.__getitem__)
    assert load_file(tmp_path / "out" / "model" / "model.safetensors").keys()
    source = tmp_path / "out" / ("round-0" if best == 0 else f"round-{best}/learned")
    assert weights(tmp_path / "out") == weights(source)
    assert said.count("best") >= 1 and about["rounds"][1]["teacher"] and about["rounds"][1]["kept"]
    assert (tmp_path / "out" / "round-1" / "judged" / "kept.png").is_file()
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().out == said


def test_a_teacher_that_is_given_is_evaluated_once_and_what_rounds_are_compared_with(
    judged, model, tmp_path, capsys, monkeypatch
):
    recipe = write_recipe(tmp_path, model, max_steps=1, learning_rate=1e-12)
    command = run_command(judged, recipe, "--output", str(tmp_path / "out"), "--model", model, "--from-teacher")
    assert main([*command, "--metric", "eval_cider_d", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "no round was better than the model that they began with" in said and f"model: {model}" in said
    assert not (tmp_path / "out" / "model").exists()
    held = (tmp_path / "out" / "round-0" / "teacher.json").read_bytes()

    def evaluated_again(trainer, *args, **kwargs):
        raise AssertionError("the teacher was evaluated again")

    monkeypatch.setattr(rounds.ScaTrainer, "evaluate", evaluated_again)
    assert main([*command, "--metric", "eval_cider_d", "--quiet"]) == 0
    assert capsys.readouterr().out == said[said.index("round ") :]
    assert (tmp_path / "out" / "round-0" / "teacher.json").read_bytes() == held
    assert main([*command, "--metric", "eval_cider_d", "--quiet", "--training.eval_prompt=point"]) != 0
    assert "the teacher was evaluated again" in capsys.readouterr().err
    assert main([*command, "--metric", "eval_nonsense", "--quiet"]) == 2
    assert "the evaluation has no eval_nonsense, expected one of eval_" in capsys.readouterr().err


def test_the_next_teacher_may_be_a_mean_of_weights(model, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    made = _averaged(tmp_path / "mean", model, other, 0.75)
    old, new, mean = (load_file(f"{folder}/model.safetensors") for folder in (model, other, made))
    assert old.keys() == new.keys() == mean.keys()
    for name in mean:
        assert torch.allclose(mean[name], 0.75 * old[name] + 0.25 * new[name], atol=1e-6), name
    load(made, "cpu")
    with pytest.raises(ValueError, match="weights of other names or shapes"):
        _averaged(tmp_path / "no", "sca-tiny", model, 0.5)
    with pytest.raises(ValueError, match="ema is 1, expected a number from 0 to below 1"):
        RoundSettings(ema=1)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(judged, model, tmp_path):
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    plain = save_tiny_model(tmp_path / "plain", text_config=still)
    manifest = str(judged / "judged" / "manifest.parquet")
    for name, size in (("one", 2), ("two", 1)):
        recipe = write_recipe(tmp_path, plain, per_device_train_batch_size=size, optim="sgd")
        command = ["self-train", "learn", recipe, "--manifest", manifest, "--output", str(tmp_path / name)]
        finish(start(command, tmp_path / "cache", world=1 if name == "one" else 2, torchrun=name == "two"))
    ends = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, atol=1e-6, rtol=0, msg=name)
    labels = [sorted(path.name for path in (tmp_path / name / "labels").iterdir()) for name in ("one", "two")]
    sources = [json.loads((tmp_path / name / "self_training.json").read_text()) for name in ("one", "two")]
    assert labels[0] == labels[1] and sources[0] == sources[1]


def test_rounds_need_a_held_out_set(judged, model, tmp_path, capsys, monkeypatch):
    recipe = write_recipe(tmp_path, model)
    assert main([*run_command(judged, recipe), "--data.holdout=null"]) == 2
    assert "add data.eval or data.holdout" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(run_command(judged, recipe)) == 2
    assert "run works in one process" in capsys.readouterr().err


@pytest.mark.slow
def test_rounds_killed_in_any_stage_end_with_the_same_model(judged, model, tmp_path):
    recipe = write_recipe(tmp_path, model, max_steps=4)

    def command(name):
        return run_command(judged, recipe, "--output", str(tmp_path / name), "--rounds", "1")

    finish(start(command("whole"), tmp_path / "cache"))
    place, killed = tmp_path / "killed", 0
    marks = ("round-0/checkpoint-2", "round-1/proposals/records.jsonl", "round-1/judged/manifest.parquet")
    for mark in (*marks, "round-1/learned/checkpoint-2"):
        killed += kill_when(start(command("killed"), tmp_path / "cache"), (place / mark).exists)
    assert killed >= 3
    finish(start(command("killed"), tmp_path / "cache"))
    assert weights(place) == weights(tmp_path / "whole")
    for name in ("round-1/judged/manifest.parquet", "round-1/proposals/records.jsonl"):
        assert (place / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
