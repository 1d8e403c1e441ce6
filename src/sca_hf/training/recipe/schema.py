"""What a recipe may say: the sections model, data, training and output, checked before anything is loaded.

    model:
      from: sca-tiny            # a folder, a repository id, an earlier recipe's output/model, or the bundled sca-tiny;
                                # or sam: and language_model: with a new mixer between them
    data:
      train: {format: voc, root: signs}            # one data spec or a list of them
      holdout: 0.2                                 # or eval: specs of their own
    training: {max_steps: 1000, preset: mixer}     # fields of ScaTrainingArguments
    output: runs/signs

`extends: other.yaml` takes what a recipe does not say itself from another in the same folder. All other relative
paths start where the command does, as on any command line, so that stages chain by `runs/stage1/model`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union

from ...yaml_files import check_keys, override, read_yaml, refuse_variables, write_yaml


SECTIONS = ("model", "data", "training", "output")
_EXTENDS = "extends"
_NEW_MODEL = ("sam", "sam_revision", "language_model", "language_model_revision", "mixer")
# What a recipe says about a data set beside the reader's own options.
_SPEC_KEYS = ("as", "probability", "weight")
# Set by `output`, or by nothing: a recipe trains, evaluates and saves in one go.
_NOT_FOR_RECIPES = {"output_dir", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "push_to_hub"}


@dataclass
class ModelSection:
    """Where the model comes from: `from`, or `sam` and `language_model` with a new mixer; then what is exchanged.

    mixer: fields of [`ScaMixerConfig`] for a new mixer.
    swap_language_model, swap_image_encoder: folder or repository id to put in place of a part.
    image_size: side of the input in pixels; SAM's position tables are interpolated to it.
    patch_size: of SAM's patches at that size, a multiple of the old one; None leaves it.
    detail_widths: of a new [`ScaDetailEncoder`], for small models.
    dtype: of the weights that are trained; frozen ones follow `training.frozen_dtype`.
    label_smoothing, max_caption_length, caption_add_bos: see [`ScaConfig`]; None leaves them as they are.
    """

    from_: str | None = None
    revision: str | None = None
    sam: str | None = None
    sam_revision: str | None = None
    language_model: str | None = None
    language_model_revision: str | None = None
    mixer: dict[str, Any] = field(default_factory=dict)
    swap_language_model: str | None = None
    swap_language_model_revision: str | None = None
    swap_image_encoder: str | None = None
    swap_image_encoder_revision: str | None = None
    image_size: int | None = None
    patch_size: int | None = None
    detail_widths: list[int] | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    label_smoothing: float | None = None
    max_caption_length: int | None = None
    caption_add_bos: bool | None = None

    def __post_init__(self) -> None:
        parts = self.sam is not None, self.language_model is not None
        if (self.from_ is None) == (not any(parts)) or (any(parts) and not all(parts)):
            raise ValueError("model needs either from, or both sam and language_model.")
        if self.from_ is not None and self.mixer:
            raise ValueError("model.mixer shapes a new mixer, but model.from brings its own: remove one of them.")
        owners = {"revision": "from", "patch_size": "image_size", **{f"{name}_revision": name for name in _REVISED}}
        for name, owner in owners.items():
            if getattr(self, name) is not None and getattr(self, "from_" if owner == "from" else owner) is None:
                raise ValueError(f"model.{name} needs model.{owner}.")

    @property
    def config_fields(self) -> dict[str, Any]:
        """What the recipe says of fields of [`ScaConfig`]."""
        named = {name: getattr(self, name) for name in ("label_smoothing", "max_caption_length", "caption_add_bos")}
        return {name: value for name, value in named.items() if value is not None}


_REVISED = ("sam", "language_model", "swap_language_model", "swap_image_encoder")


@dataclass
class MixingSection:
    """How several training sets become one, see `sca_hf.data.mixing`."""

    by_size: bool = False
    stopping: Literal["all_exhausted", "first_exhausted"] = "all_exhausted"
    seed: int = 0
    max_samples: int | None = None


@dataclass
class DataSection:
    """Training and evaluation sets, as data specs: `{format: voc, root: ...}`.

    train: each may also have a `probability` (all, summing to 1) or a `weight` (all, in any unit).
    eval: several are scored one by one, each under the name in its `as`, else its format.
    holdout: this share of the training images is kept out of training and evaluated on, in place of `eval`.
    holdout_seed: chooses which.
    """

    train: list[dict[str, Any]]
    eval: list[dict[str, Any]] = field(default_factory=list)
    holdout: float | None = None
    holdout_seed: int = 0
    mixing: MixingSection = field(default_factory=MixingSection)

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("data.train is empty; it needs at least one data spec.")
        if self.holdout is not None and self.eval:
            raise ValueError("data.holdout and data.eval are both given; which of them is the evaluation set?")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise ValueError(f"data.holdout is {self.holdout}, expected a share between 0 and 1.")
        if self.holdout is not None and any(spec.get("streaming") for spec in self.train):
            raise ValueError("data.holdout needs to know all images: leave out streaming, or give data.eval.")
        self.probabilities()
        where, scored = ("train", self.train) if self.holdout is not None else ("eval", self.eval)
        names = [self.name_of(spec) for spec in scored]
        if len(set(names)) < len(names):
            raise ValueError(
                f"data.{where} has the names {', '.join(names)}; give each its own (name: ...) for scores."
            )

    def probabilities(self) -> list[float] | None:
        """The share of each training set, or None where the recipe leaves it to `mixing`."""
        given = {key: [spec[key] for spec in self.train if key in spec] for key in ("probability", "weight")}
        if not any(given.values()):
            return None
        if all(given.values()) or max(map(len, given.values())) < len(self.train):
            raise ValueError("data.train: give every set a probability, or every set a weight, or none of them.")
        values = given["probability"] or given["weight"]
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0 for value in values):
            raise ValueError(f"data.train: probabilities and weights are positive numbers, got {values}.")
        if given["probability"] and abs(sum(values) - 1) > 1e-6:
            raise ValueError(f"data.train: the probabilities sum to {sum(values):g}, expected 1; or call them weight.")
        if self.mixing.by_size:
            raise ValueError("data.mixing.by_size and probabilities in data.train contradict each other.")
        return [value / sum(values) for value in values]

    @staticmethod
    def name_of(spec: Mapping[str, Any]) -> str:
        """What a set is called in metrics."""
        return str(spec.get("as") or spec["format"])

    @staticmethod
    def reader_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
        """What of an entry belongs to the reader."""
        return {key: value for key, value in spec.items() if key not in _SPEC_KEYS}


@dataclass
class Recipe:
    """One training run; see this file's head.

    training: fields of `ScaTrainingArguments` without `output_dir`.
    output: folder for checkpoints, the finished model (`output/model`), its scores and the recipe itself.
    """

    model: ModelSection
    data: DataSection
    output: str
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "the recipe") -> Recipe:
        """Checks a recipe's mapping and returns it; a mistake is one sentence with the place in it."""
        check_keys(values, SECTIONS, source)
        missing = [name for name in ("model", "data", "output") if values.get(name) is None]
        if missing:
            raise ValueError(f"{source} has no {' and no '.join(missing)}.")
        if not isinstance(values["output"], str):
            raise ValueError(f"output is {values['output']!r}, expected the name of a folder.")
        for name in SECTIONS:
            refuse_variables(values.get(name), name)
        given = dict(_mapping(values["model"], "model"))
        check_keys(given, [f.name.rstrip("_") for f in fields(ModelSection)], "model")
        if "from" in given:
            given["from_"] = given.pop("from")
        model = _section(ModelSection, given, "model")
        return cls(model, _data(values["data"]), values["output"], _training(values.get("training") or {}))

    def to_mapping(self) -> dict[str, Any]:
        """The recipe with what its defaults leave out left out, ready for YAML."""
        model = {f.name.rstrip("_"): getattr(self.model, f.name) for f in fields(ModelSection)}
        data: dict[str, Any] = {"train": self.data.train}
        if self.data.eval:
            data["eval"] = self.data.eval
        if self.data.holdout is not None:
            data |= {"holdout": self.data.holdout, "holdout_seed": self.data.holdout_seed}
        if len(self.data.train) > 1 or self.data.mixing.max_samples is not None:
            data["mixing"] = vars(self.data.mixing)
        return {
            "model": {name: value for name, value in model.items() if value not in (None, {})},
            "data": data,
            "training": self.training,
            "output": self.output,
        }

    def to_yaml(self) -> str:
        """The recipe as YAML."""
        return write_yaml(self.to_mapping())


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe file, and those that it extends.

    Args:
        path: YAML file.
        overrides: `--section.key=value` as on the command line, values typed as in YAML.
    """
    return Recipe.from_mapping(override(_read(Path(path), ()), overrides), str(path))


def _read(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    values = read_yaml(path)
    check_keys(values, [*SECTIONS, _EXTENDS], str(path))
    data = values.get("data")
    if isinstance(data, dict):
        for name in ("train", "eval"):
            # One spec is a list of one, so that `--data.train.root` and `--data.train.0.root` both find it.
            if isinstance(data.get(name), dict):
                data[name] = [data[name]]
    below = values.pop(_EXTENDS, None)
    if below is None:
        return values
    if not isinstance(below, str) or Path(below).name != below:
        raise ValueError(f"{path}: extends is {below!r}, expected the name of a recipe in the same folder.")
    if path in extended_by:
        raise ValueError(f"{path} extends itself.")
    extended = _read(path.with_name(below), (*extended_by, path))
    if isinstance(values.get("model"), dict) and "from" in values["model"]:
        # Another start: what the extended recipe says of its own new model does not count.
        extended["model"] = {key: part for key, part in extended.get("model", {}).items() if key not in _NEW_MODEL}
    return _merged(extended, values)


def _merged(below: Any, above: Any) -> Any:
    """What `above` says, and of `below` what it leaves open; lists are taken whole."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


def _data(values: Any) -> DataSection:
    values = dict(_mapping(values, "data"))
    check_keys(values, [f.name for f in fields(DataSection)], "data")
    if values.get("train") is None:
        raise ValueError("data has no train.")
    for name in ("train", "eval"):
        specs = values.get(name) or []
        values[name] = [
            _spec(spec, f"data.{name}.{place}")
            for place, spec in enumerate(specs if isinstance(specs, list) else [specs])
        ]
    mixing = _mapping(values.get("mixing") or {}, "data.mixing")
    check_keys(mixing, [f.name for f in fields(MixingSection)], "data.mixing")
    values["mixing"] = _section(MixingSection, mixing, "data.mixing")
    return _section(DataSection, values, "data")


def _spec(spec: Any, where: str) -> dict[str, Any]:
    import inspect

    from ...data.loading import READERS, find_reader, load_regions

    spec = dict(_mapping(spec, where))
    if "format" not in spec:
        raise ValueError(f"{where} has no format; known are {', '.join(READERS)}.")
    if spec["format"] not in READERS:
        check_keys({str(spec["format"]): None}, READERS, f"{where}.format")
    parameters = [*inspect.signature(find_reader(spec["format"])).parameters.values()]
    if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
        general = [name for name in inspect.signature(load_regions).parameters if name != "options"]
        known = [*_SPEC_KEYS, *general, *(parameter.name for parameter in parameters)]
        check_keys(spec, known, f"{where} ({spec['format']})")
        missing = [p.name for p in parameters if p.default is p.empty and p.name not in spec]
        if missing:
            raise ValueError(f"{where} ({spec['format']}) needs {' and '.join(missing)}.")
    return spec


def _training(values: Any) -> dict[str, Any]:
    from ..arguments import ScaTrainingArguments

    values = dict(_mapping(values, "training"))
    for name in _NOT_FOR_RECIPES & values.keys():
        mend = "output says where to" if name == "output_dir" else "sca-hf train does this by itself"
        raise ValueError(f"training.{name} is not for recipes: {mend}.")
    known = {f.name: f for f in fields(ScaTrainingArguments) if f.init and f.name not in _NOT_FOR_RECIPES}
    check_keys(values, known, "training")
    hints = typing.get_type_hints(ScaTrainingArguments)
    return {name: _typed(value, hints[name], f"training.{name}") for name, value in values.items()}


def _section(kind: type, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(value, hints[name], f"{where}.{name.rstrip('_')}") for name, value in values.items()})


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}, expected keys and values.")
    return value


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Returns the value if it fits its type; raises otherwise."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if any(_fits(value, kind) for kind in kinds):
        return value
    wanted = " or ".join(_called(kind) for kind in kinds)
    raise ValueError(f"{where} is {value!r}, expected {wanted}.")


def _fits(value: Any, kind: Any) -> bool:
    if kind in (None, type(None)):
        return value is None
    origin = typing.get_origin(kind) or kind
    if origin is Literal:
        return value in typing.get_args(kind)
    if not isinstance(origin, type) or origin is object:
        return True  # Any and the like
    if issubclass(origin, str):
        return isinstance(value, str)  # the library's enumerations take their values
    if origin in (int, float):
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    if issubclass(origin, Mapping) or origin is dict:
        return isinstance(value, Mapping)
    return isinstance(value, (list, tuple)) if issubclass(origin, (list, tuple)) else isinstance(value, origin)


def _called(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return names.get(kind) or str(getattr(typing.get_origin(kind) or kind, "__name__", kind))
