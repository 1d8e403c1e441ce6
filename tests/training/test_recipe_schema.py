"""Recipes before anything is loaded: what they may say, how the command line changes them, the published ones."""

from pathlib import Path

import pytest

from sca_hf.training.recipe.schema import Recipe, load_recipe, override
from sca_hf.yaml_files import parse_yaml, read_yaml, write_yaml


ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "src" / "sca_hf" / "recipes"
# sca_tiny.yaml is of the bundled model's own stages; small_set.yaml is what others extend.
PUBLISHED = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("src/sca_hf/recipes/*.yaml", "experiments/real/*.yaml", "experiments/sca_tiny/*.yaml")
    for path in ROOT.glob(pattern)
    if path.stem not in ("sca_tiny", "small_set")
)
PLAIN = """\
model: {from: sca-tiny}
data:
  train: {format: scenes, count: 8}
  holdout: 0.25
training: {max_steps: 3, learning_rate: 1e-4}
output: runs/plain
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1_000", 1000),
        ("-.5", -0.5),
        ("no", "no"),
        ("007", "007"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
        ("{box: 0.5, point: 1}", {"box": 0.5, "point": 1}),
        ("[a, 2]", ["a", 2]),
    ],
)
def test_values_are_what_one_means(text, value):
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)


def test_text_that_looks_like_something_else_survives_writing(tmp_path):
    values = {"a": "1e-4", "b": "no", "c": "1", "d": "true", "e": "", "f": 1e-10, "g": [{"h": "~"}]}
    (tmp_path / "x.yaml").write_text(write_yaml(values))
    assert read_yaml(tmp_path / "x.yaml") == values


def test_a_recipe_survives_its_own_yaml(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_the_command_line_changes_values_by_their_place(recipe_file):
    changes = ["--training.learning_rate=5e-5", "--data.train.0.count=4", "--data.train.start=2", "--output=runs/b"]
    recipe = load_recipe(recipe_file, [*changes, "--training.prompt_probabilities={box: 1}"])
    assert recipe.training == {"max_steps": 3, "learning_rate": 5e-5, "prompt_probabilities": {"box": 1}}
    assert recipe.data.train == [{"format": "scenes", "count": 4, "start": 2}] and recipe.output == "runs/b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--training.lerning_rate=1", "training has no 'lerning_rate'; did you mean 'learning_rate'?"),
        ("--modle.from=x", "has no 'modle'; did you mean 'model'?"),
        ("--data.train.fromat=voc", r"data.train.0 \(scenes\) has no 'fromat'; did you mean 'format'?"),
        ("--data.train.format=vco", "has no 'vco'; did you mean 'voc'?"),
        ("--data.train.format=voc", r"data.train.0 \(voc\) has no 'count'"),
        ("--data.train.1.count=2", "data.train has the entries 0 to 0, not '1'"),
        ("--data.holdout=1.5", "expected a fraction between 0 and 1"),
        ("--data.train.streaming=true", "holdout needs to know all images"),
        ("--training.max_steps=many", "training.max_steps is 'many', expected a whole number"),
        ("--training.bf16=1", "training.bf16 is 1, expected true or false"),
        ("--training.output_dir=x", "output sets it"),
        ("--model.sam=facebook/sam-vit-base", "either from or both sam and language_model"),
        ("--model.swap_language_model_revision=main", "needs model.swap_language_model"),
        ("--model.mixer={num_hidden_layers: 2}", "model.from brings its own"),
        ("--output=$HOME/x", r'does not expand \$HOME; .*--output="\$HOME/x"'),
        ("--data.train.start=${START}", "data.train.0.start"),
        ("--output=", "has no output"),
        ("--training.max_steps", "nor a --section.key=value"),
        ("--training.learning_rate.x=1", "training.learning_rate is 0.0001, which has no 'x'"),
    ],
)
def test_a_slip_is_named_with_its_place(recipe_file, change, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, [change])


def test_yaml_that_is_not_a_recipe_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    for text, message in (
        ("model: 1\nmodel: 2", "'model' stands twice"),
        ("- a", "holds a list"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("a: [", "is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(path)
    with pytest.raises(FileNotFoundError, match="there is no recipe"):
        load_recipe(tmp_path / "absent.yaml")


def test_probabilities_of_several_sets_are_all_or_none(recipe_file):
    values = read_yaml(recipe_file)

    def probabilities(*sets, **mixing):
        train = [{"format": "scenes", "count": 1, **one} for one in sets]
        return Recipe.from_mapping({**values, "data": {"train": train, "mixing": mixing}}).data.probabilities()

    assert probabilities({}, {}) is None
    assert probabilities({"weight": 1}, {"weight": 3}) == [0.25, 0.75]
    assert probabilities({"probability": 0.5}, {"probability": 0.5}) == [0.5, 0.5]
    for sets, message in (
        (({"weight": 1}, {}), "every set"),
        (({"weight": 1}, {"probability": 1}), "every set"),
        (({"probability": 0.5}, {"probability": 0.2}), "sum to 0.7"),
        (({"weight": -1}, {"weight": 1}), "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            probabilities(*sets)
    with pytest.raises(ValueError, match="contradict"):
        probabilities({"weight": 1}, {"weight": 3}, by_size=True)


def test_one_recipe_extends_another(recipe_file, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: plain.yaml\ntraining: {max_steps: 9}\noutput: runs/child\n")
    recipe = load_recipe(child)
    assert recipe.training == {"max_steps": 9, "learning_rate": 1e-4} and recipe.output == "runs/child"
    assert recipe.model.from_ == "sca-tiny" and recipe.data.holdout == 0.25
    child.write_text("extends: child.yaml\n")
    with pytest.raises(ValueError, match="extends itself"):
        load_recipe(child)
    child.write_text("extends: ../plain.yaml\n")
    with pytest.raises(ValueError, match="in the same folder"):
        load_recipe(child)


def test_override_makes_sections_that_are_not_there():
    assert override({}, ["--training.max_steps=2"]) == {"training": {"max_steps": 2}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_are_whole_and_their_stages_chain(name):
    recipe = load_recipe(ROOT / name)
    assert load_recipe(ROOT / name, ["--training.max_steps=1"]).training["max_steps"] == 1
    outputs = {f"{load_recipe(ROOT / other).output}/model" for other in PUBLISHED}
    assert recipe.model.from_ in {None, "sca-tiny", "runs/sca-tiny/captions/model", *outputs}
    assert recipe.output == f"runs/{Path(name).stem}"


def test_the_published_settings_are_those_of_the_paper_and_its_configurations():
    alone, first, second = (
        load_recipe(RECIPES / f"{name}.yaml")
        for name in ("visual_genome", "pretrain_objects365", "finetune_visual_genome")
    )
    assert alone.model.mixer == {"num_hidden_layers": 12, "num_caption_tokens": 8, "num_task_tokens": 6}
    common = {"weight_decay": 1e-4, "warmup_steps": 200, "lr_scheduler_type": "cosine", "regions_per_image": 16}
    for recipe, steps, rate, augmentation in (
        (alone, 200_000, 4e-4, "lsj-0.1-2.0"),
        (first, 100_000, 1e-4, None),
        (second, 100_000, 4e-4, "lsj-0.1-2.0"),
    ):
        training = recipe.training
        assert common.items() <= training.items() and training["prompt_probabilities"] == {"box": 1.0}
        found = training["max_steps"], training["learning_rate"], training["augmentation"]
        assert found == (steps, rate, augmentation)
    assert {spec["task"] for spec in first.data.train} == {"caption"}


def test_a_folder_may_be_called_2007(tmp_path):
    text = "model: {from: 2007}\ndata: {train: {format: voc, root: 2007}}\noutput: 2007\n"
    (tmp_path / "mine.yaml").write_text(text + "training: {embedding_cache: 2008}\n")
    recipe = load_recipe(tmp_path / "mine.yaml", ["--model.from=2012"])
    assert (recipe.model.from_, recipe.output, recipe.training["embedding_cache"]) == ("2012", "2007", "2008")
