"""One function writes files: beside their place, then renamed. Whatever else writes is listed, with its reason."""

import ast
from pathlib import Path

from sca_hf.files import write_whole


ROOT = Path(__file__).parents[1] / "src" / "sca_hf"
WRITERS = {"write_text", "write_bytes", "save", "save_file", "save_pretrained", "dump", "write_table", "save_to_json"}
WRITERS |= {"copyfile", "copytree", "copy2", "move", "rename", "link", "symlink_to", "savez", "savefig"}
STAGED = "writes into a folder that is renamed when it is whole"
# File or folder, and function -> why it may write by itself.
ALLOWED = {
    "files.py": "the one owner of writing",
    "run_log.py:__enter__": "a journal: lines are appended, and one that is cut is dropped",
    "modeling": "travels to the Hub without files.py; writes into the folder that it is given, as the library does",
    "processing": "travels to the Hub without files.py; writes into the folder that it is given, as the library does",
    "data/writers": STAGED,
    "hub/convert.py": STAGED,
    "hub/publish.py": STAGED,
    "hub/private.py:clean_paths": STAGED,
    "hub/space.py": STAGED,
    "training/checkpoint/trainer.py": STAGED,
    "training/detail_pretraining.py": STAGED,
    "training/recipe/run.py:_save": "writes a draft, and into a folder that is renamed when it is whole",
    "hub/probe.py:main": "runs without this package; its file is read and removed by its caller",
    "evaluation/predictions.py:_write_parquet": "writes the draft that it is given",
    "training/checkpoint/hub_push.py:copy_code": "writes a draft",
    "evaluation/metrics/java_programs.py:run_program": "a temporary folder, for another program to read",
    "evaluation/report/contents.py:data_uri": "writes to memory",
    "demo/blocks.py:_bytes_of": "writes to memory",
    "training/embedding_cache.py:_entry": "makes bytes",
    "run_identity.py:_tables": "writes to memory",
    "self_training/manifest.py:write_manifest": "writes a draft",
    "self_training/proposing.py:_keep_picture": "writes a draft",
    "self_training/rounds.py": STAGED,
    "data/clips.py:write_clip": "writes a draft, or into a staged folder",
    "data/clips.py:write_masklets": STAGED,
    "testing.py:save_tiny_model": "for tests, which look at it once it is there",
}


def writes(call: ast.Call) -> bool:
    """Whether a call writes, by its name; of `open`, by its mode."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name == "open":
        texts = [
            part.value for part in ast.walk(call) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        return any(set(text) & set("wax+") and not set(text) - set("rwax+bt") for text in texts)
    if name == "replace":  # of a text, or of fields
        return isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "os"
    return name in WRITERS and not (name == "dump" and getattr(call.func.value, "id", "") == "yaml")


def found() -> set[str]:
    """Every function that writes, as `file:function`."""
    places = set()
    for path in sorted(ROOT.rglob("*.py")):
        if "assets" in path.parts or path.is_symlink():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and writes(node)):
            inside = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
            name = max(inside, key=lambda f: f.lineno).name if inside else "module"
            places.add(f"{path.relative_to(ROOT).as_posix()}:{name}")
    return places


def reason(place: str) -> str | None:
    file = place.partition(":")[0]
    return next((ALLOWED[key] for key in (place, file, *map(str, Path(file).parents)) if key in ALLOWED), None)


def test_nothing_else_writes():
    places = found()
    assert {place for place in places if reason(place) is None} == set()
    used = {key for key in ALLOWED for place in places if place == key or place.startswith((f"{key}:", f"{key}/"))}
    assert used == set(ALLOWED), "a reason that nothing needs"


def test_a_way_of_writing_is_seen():
    for text in (
        "open(p, 'w')",
        "p.open('ab')",
        "p.write_text(t)",
        "image.save(p)",
        "os.replace(a, b)",
        "open(p, 'r+')",
    ):
        assert writes(ast.parse(text).body[0].value), text
    for text in ("open(p)", "open(p, 'rb')", "name.replace('a', 'b')", "p.open(encoding='utf-8')"):
        assert not writes(ast.parse(text).body[0].value), text
    assert callable(write_whole)
