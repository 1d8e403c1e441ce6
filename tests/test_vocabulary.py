"""One name for one thing, and the field's: words that were given up do not come back."""

import ast
import re
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# given up -> what it is called. As whole words, in names and in prose.
WORDS = {
    "label_parts": "connected_components",
    "clean_mask": "remove_small_regions",
    "grid_points": "build_point_grid",
    "crop_boxes": "generate_crop_boxes",
    "PictureNorm": "FrozenBatchNorm2d",
    "_speak": "_language_model_forward",
    "head_on": "lm_head_at",
    "teach_details": "pretrain_detail_encoder",
    "DrawnRecords": "SeededDataset",
    "kept_randomness": "preserve_rng_state",
    "Tally": "EvalAccumulator",
    "describe_run": "run_fingerprint",
    "AskedRegion": "RegionQuery",
    "Refusal": "ErrorResponse",
    "Found": "AnythingRegion",
    "CaptionAnswer": "CaptionResponse",
    "repoint": "resample_point",
    "sharpen": "increase_input_resolution",
    "seal": "manifest",
    "sealed": "manifest",
    "torn": "incomplete",
    "bases": "base models",
    "include_bases": "include_base_models",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "mending": "fixing",
    "shares": "probabilities or fractions",
    "rooms": "packages",
    "colour": "color",
    "colours": "colors",
    "coloured": "colored",
    "grey": "gray",
    "centre": "center",
    "normalise": "normalize",
    "quantise": "quantize",
    "anew": "again, or from scratch",
    # settings of anything mode have SAM's names
    "stability_threshold": "stability_score_thresh",
    "stability_offset": "stability_score_offset",
    "crop_layers": "crop_n_layers",
    "crop_overlap": "crop_overlap_ratio",
    "crop_points_downscale": "crop_n_points_downscale_factor",
    "crop_nms_threshold": "crop_nms_thresh",
    "min_region_area": "min_mask_region_area",
}
# As names only: the words themselves are English.
NAMES = {
    "ask": "build_query",
    "Answer": "RegionPrediction",
    "spread": "scatter_logits",
    "suppress": "nms",
    "least": "min",
    "most": "max",
}
# file -> words that it may use, and why
ALLOWED = {
    "tests/test_vocabulary.py": {*WORDS},
    "CHANGELOG.md": {*WORDS},
    "docs/api.md": {*WORDS},  # made from docstrings
    "docs/api.py": {"bases"},  # of a class, in Python's own syntax tree
    "tests/experiments/test_field_files.py": {"torn"},  # a folder's name
    # captions that others wrote have British words too
    "src/sca_hf/data/sides.py": {"centre"},
    "tests/data/test_sides.py": {"centre"},
}
TEXTS = (".py", ".md", ".toml", ".yaml", ".yml", ".js", ".css", ".html", ".txt", ".json", ".cff", "")


def tracked():
    """Our files of text, by name; not the links, not what others wrote."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        path = ROOT / name
        ours = not name.startswith(("src/sca_hf/assets/", "tests/fixtures/", "LICENSE"))
        if ours and path.suffix in TEXTS and path.is_file() and not path.is_symlink():
            yield name, path


@pytest.fixture(scope="module", autouse=True)
def _in_a_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout")


def test_words_that_were_given_up_are_gone():
    pattern = re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(WORDS)})(?![A-Za-z0-9_])")
    found = [
        f"{name}:{number}: {word}, say {WORDS[word]}"
        for name, path in tracked()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word in pattern.findall(line)
        if word not in ALLOWED.get(name, ())
    ]
    assert not found, "\n".join(found)


def test_names_that_were_given_up_are_gone():
    found = [
        f"{name}:{line}: {word}, say {NAMES[word]}"
        for name, path in tracked()
        if path.suffix == ".py"
        for word, line in names_in(ast.parse(path.read_text(encoding="utf-8")))
        if word in NAMES
    ]
    assert not found, "\n".join(found)


def names_in(tree):
    """The names that code defines: functions, classes, arguments, variables, fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno
