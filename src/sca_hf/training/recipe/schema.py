"""What a recipe may say: the sections model, data, training and output, checked before anything is loaded.

    model:
      from: sca-photo           # a folder, a repository id, an earlier recipe's output/model, or a bundled model;
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

import difflib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ...modeling.configuration_sca import check_scope
from ...yaml_files import parse_yaml, read_yaml, write_yaml


SECTIONS = ("model", "data", "training", "output")
_EXTENDS = "extends"
_NEW_MODEL = ("sam", "sam_revision", "language_model", "language_model_revision", "mixer")
# What a recipe says about a data set beside the reader's own options.
_SPEC_KEYS = ("as", "probability", "weight")
# Set by `output`, or by nothing: a recipe trains, evaluates and saves in one go.
_NOT_FOR_RECIPES = {"output_dir", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "push_to_hub"}
_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
# How pydantic's kinds of mistakes are said.
_EXPECTED = {"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false"}
_EXPECTED |= {"string_type": "text", "list_type": "a list", "dict_type": "keys and values"}
# What a shell would replace, and we do not.
_VARIABLE = re.compile(r"\$\{?[A-Za-z_]\w*\}?|^~(?=/|$)")


def _as_text(value: Any) -> Any:
    """A folder may be called 2007."""
    return str(value) if type(value) is int else value


_Path = Annotated[str, BeforeValidator(_as_text)]


class _Section(BaseModel):
    """A part of a recipe: its values have the types that it names, no text stands for a number, no key is unknown."""

    model_config = _STRICT
    place: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError(f"{cls.place} is {values!r}, expected keys and values.")
        check_keys(values, [known.alias or name for name, known in cls.model_fields.items()], cls.place)
        return values


class ModelSection(_Section):
    """Where the model comes from: `from`, or `sam` and `language_model` with a new mixer; then what is exchanged.

    mixer: The fields of [`ScaMixerConfig`] for a new mixer.
    swap_language_model, swap_image_encoder: The folder or repository id to put in place of a part; a language model
        may be a GGUF file, `folder/file.gguf` or `owner/name/file.gguf`.
    image_size: The side of the input in pixels; SAM's position tables are interpolated to it.
    patch_size: The side of SAM's patches at that size, a multiple of the old one; None leaves it.
    detail_widths: The widths of a new [`ScaDetailEncoder`], for small models.
    second_look_size: The side in pixels of the crops of a new [`ScaSecondLook`].
    second_look_weights: A safetensors file that the second look starts from; without it, from noise.
    lengths: The lengths of captions to learn, each as a task of its own: short, sentence, detailed, numbers of words;
        captions then have up to 200 tokens, unless max_caption_length says otherwise.
    languages: The languages of captions to learn, tags such as de or zh-Hans, each as a task of its own.
    dtype: The precision of the weights that are trained; frozen ones follow `training.frozen_dtype`.
    label_smoothing, max_caption_length, caption_add_bos: Fields of [`ScaConfig`]; None leaves them as they are.
    scope: What the finished model knows, as [`ScaConfig`] has it; what it leaves out is told by the data.
    """

    place: ClassVar[str] = "model"

    from_: _Path | None = Field(None, alias="from")
    revision: str | None = None
    sam: _Path | None = None
    sam_revision: str | None = None
    language_model: _Path | None = None
    language_model_revision: str | None = None
    mixer: dict[str, Any] = {}
    swap_language_model: _Path | None = None
    swap_language_model_revision: str | None = None
    swap_image_encoder: _Path | None = None
    swap_image_encoder_revision: str | None = None
    image_size: int | None = None
    patch_size: int | None = None
    detail_widths: list[int] | None = None
    second_look_size: int | None = None
    second_look_weights: _Path | None = None
    lengths: list[str | int] | None = None
    languages: list[str] | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    label_smoothing: float | None = None
    max_caption_length: int | None = None
    caption_add_bos: bool | None = None
    scope: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_one_model(self) -> ModelSection:
        parts = self.sam is not None, self.language_model is not None
        if (self.from_ is None) == (not any(parts)) or (any(parts) and not all(parts)):
            raise ValueError("model needs either from or both sam and language_model.")
        if self.from_ is not None and self.mixer:
            raise ValueError("model.mixer shapes a new mixer, but model.from brings its own: remove one of them.")
        owners = {
            "revision": "from",
            "patch_size": "image_size",
            "second_look_weights": "second_look_size",
            **{f"{name}_revision": name for name in _REVISED},
        }
        for name, owner in owners.items():
            if getattr(self, name) is not None and getattr(self, "from_" if owner == "from" else owner) is None:
                raise ValueError(f"model.{name} needs model.{owner}.")
        check_scope(self.scope)
        return self

    @property
    def sources(self) -> dict[str, tuple[str, str | None]]:
        """The folders and repositories that the model is made of, each with its revision, by their fields."""
        owners = {"from_": "revision", **{name: f"{name}_revision" for name in _REVISED}}
        return {
            name: (source, getattr(self, revision))
            for name, revision in owners.items()
            if (source := getattr(self, name))
        }

    @property
    def config_fields(self) -> dict[str, Any]:
        """What the recipe says of fields of [`ScaConfig`]."""
        named = {name: getattr(self, name) for name in ("label_smoothing", "max_caption_length", "caption_add_bos")}
        return {name: value for name, value in named.items() if value is not None}


_REVISED = ("sam", "language_model", "swap_language_model", "swap_image_encoder")


class MixingSection(_Section):
    """How several training sets become one, see `sca_hf.data.mixing`."""

    place: ClassVar[str] = "data.mixing"

    by_size: bool = False
    stopping: Literal["all_exhausted", "first_exhausted"] = "all_exhausted"
    seed: int = 0
    max_samples: int | None = None


def _as_list(specs: Any) -> Any:
    """One data spec is a list of one."""
    return [] if specs is None else [specs] if isinstance(specs, Mapping) else specs


_Specs = Annotated[list[dict[str, Any]], BeforeValidator(_as_list)]


class DataSection(_Section):
    """Training and evaluation sets, as data specs: `{format: voc, root: ...}`.

    train: The sets to train on; each may also have a `probability` (all, summing to 1) or a `weight` (all).
    eval: The sets to evaluate on; several are scored one by one, each under the name in its `as`, else its format.
    holdout: The fraction of the training images that is kept out of training and evaluated on, in place of `eval`.
    holdout_seed: The seed by which they are chosen.
    pseudo: Sets of labels that a model made (`sca-hf self-train`), to train on beside `train`: no `holdout` is taken
        of them, and pictures that are evaluated on are left out.
    pseudo_share: The share of the images trained on that are drawn from `pseudo`.
    outside: Sets of pictures that show other things than the model learns, for its confidence; see
        `sca_hf.training.confidence`. None: the model has no confidence.
    """

    place: ClassVar[str] = "data"

    train: _Specs
    eval: _Specs = []
    holdout: float | None = None
    holdout_seed: int = 0
    pseudo: _Specs = []
    pseudo_share: float = 0.5
    outside: _Specs = []
    mixing: MixingSection = Field(default_factory=MixingSection)

    @model_validator(mode="after")
    def _fits_together(self) -> DataSection:
        if not self.train:
            raise ValueError("data.train is empty; it needs at least one data spec.")
        for name in ("train", "eval", "pseudo", "outside"):
            for place, spec in enumerate(getattr(self, name)):
                _check_spec(spec, f"data.{name}.{place}")
        if self.holdout is not None and self.eval:
            raise ValueError("data.holdout and data.eval are both given; keep the one that is the evaluation set.")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise ValueError(f"data.holdout is {self.holdout}, expected a fraction between 0 and 1.")
        if self.holdout is not None and any(spec.get("streaming") for spec in self.train):
            raise ValueError("data.holdout needs to know all images: remove streaming, or use data.eval.")
        if not 0 < self.pseudo_share < 1:
            raise ValueError(f"data.pseudo_share is {self.pseudo_share}, expected a fraction between 0 and 1.")
        self.probabilities()
        where, scored = ("train", self.train) if self.holdout is not None else ("eval", self.eval)
        names = [self.name_of(spec) for spec in scored]
        if len(set(names)) < len(names):
            raise ValueError(f"data.{where} has the names {', '.join(names)}; scores need distinct names (as: ...).")
        return self

    def probabilities(self) -> list[float] | None:
        """The probability of each training set, or None where the recipe leaves it to `mixing`."""
        given = {key: [spec[key] for spec in self.train if key in spec] for key in ("probability", "weight")}
        if not any(given.values()):
            return None
        if all(given.values()) or max(map(len, given.values())) < len(self.train):
            raise ValueError("data.train: give every set a probability, or every set a weight, or neither.")
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

    training: The fields of `ScaTrainingArguments` without `output_dir`.
    output: The folder for checkpoints, the finished model (`output/model`), its scores and the recipe itself.
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
        for name in SECTIONS:
            refuse_variables(values.get(name), name)
        return cls(
            _checked(ModelSection, values["model"], "model"),
            _checked(DataSection, values["data"], "data"),
            _checked(_Path, values["output"], "output"),
            _training(values.get("training") or {}),
        )

    def to_mapping(self) -> dict[str, Any]:
        """The recipe with what its defaults leave out left out, ready for YAML."""
        model = self.model.model_dump(by_alias=True, exclude_none=True)
        data: dict[str, Any] = {"train": self.data.train}
        if self.data.eval:
            data["eval"] = self.data.eval
        if self.data.holdout is not None:
            data |= {"holdout": self.data.holdout, "holdout_seed": self.data.holdout_seed}
        if self.data.pseudo:
            data |= {"pseudo": self.data.pseudo, "pseudo_share": self.data.pseudo_share}
        if self.data.outside:
            data["outside"] = self.data.outside
        if len(self.data.train) > 1 or self.data.mixing.max_samples is not None:
            data["mixing"] = self.data.mixing.model_dump()
        return {
            "model": {name: value for name, value in model.items() if value != {}},
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
        path: The YAML file.
        overrides: Assignments `--section.key=value` as on the command line, values typed as in YAML.
    """
    return Recipe.from_mapping(override(_read(Path(path), ()), overrides), str(path))


def _read(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe {path}.")
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


def _check_spec(spec: Mapping[str, Any], where: str) -> None:
    """Raises unless a reader takes what a data spec says."""
    from ...data.loading import READERS, find_reader, load_regions

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


def _training(values: Any) -> dict[str, Any]:
    from ..arguments import ScaTrainingArguments

    hints = typing.get_type_hints(ScaTrainingArguments)
    names = [f.name for f in fields(ScaTrainingArguments) if f.init and f.name not in _NOT_FOR_RECIPES]
    if not isinstance(values, Mapping):
        raise ValueError(f"training is {values!r}, expected keys and values.")
    for name in _NOT_FOR_RECIPES & values.keys():
        remedy = "output sets it" if name == "output_dir" else "sca-hf train does this itself"
        raise ValueError(f"training.{name} cannot be set in recipes: {remedy}.")
    check_keys(values, names, "training")
    texts = {"embedding_cache": _Path}
    return {name: _checked(texts.get(name, hints[name]), value, f"training.{name}") for name, value in values.items()}


def _checked(kind: Any, values: Any, where: str) -> Any:
    """Returns values as a type; a mistake is one sentence with its place.

    Args:
        where: The place of `values` in the recipe.
    """
    try:
        own = isinstance(kind, type) and issubclass(kind, BaseModel)
        return TypeAdapter(kind, config=None if own else _STRICT).validate_python(values)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors(), values, where)) from None


def _sentence(mistakes: Sequence[Mapping[str, Any]], values: Any, where: str) -> str:
    """Says the first mistake that pydantic found, and all that was expected in its place."""
    if mistakes[0]["type"] == "value_error":
        return str(mistakes[0]["ctx"]["error"])
    if mistakes[0]["type"] == "missing":
        return f"{where} has no {mistakes[0]['loc'][-1]}."
    found: dict[str, list[str]] = {}
    for mistake in mistakes:
        place, value = [where], values
        for part in mistake["loc"]:
            # Beside keys and places, pydantic names the member of a union that it tried.
            if (isinstance(value, Mapping) and part in value) or (isinstance(value, list) and isinstance(part, int)):
                value = value[part]
                place.append(str(part))
        wanted = mistake.get("ctx", {}).get("expected") or _EXPECTED.get(mistake["type"], mistake["msg"])
        found.setdefault(f"{'.'.join(place)} is {value!r}", []).append(wanted)
    first = next(iter(found))
    return f"{first}, expected {' or '.join(dict.fromkeys(found[first]))}."


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Sets `--section.key=value` of a command line in a recipe's mapping, in place; returns it.

    A number in a key is the place in a list, from 0; where a list has one entry its place may be left out.
    """
    for assignment in assignments:
        name, equals, text = assignment.removeprefix("--").partition("=")
        if not assignment.startswith("--") or not equals or not all(name.split(".")):
            raise ValueError(f"{assignment!r} is neither an option nor a --section.key=value of the recipe.")
        *above, last = name.split(".")
        place: Any = values
        for depth, part in enumerate(above):
            place = _step(place, part, ".".join(above[:depth]), create=True)
        if isinstance(place, list) and len(place) == 1 and not last.isdigit():
            place = place[0]
        if isinstance(place, list):
            _step(place, last, ".".join(above), create=False)
            place[int(last)] = parse_yaml(text)
        elif isinstance(place, dict):
            place[last] = parse_yaml(text)
        else:
            raise ValueError(f"--{name}: {'.'.join(above)} is {place!r}, which has no {last!r}.")
    return values


def _step(place: Any, part: str, where: str, create: bool) -> Any:
    if isinstance(place, list):
        if part.isdigit() and int(part) < len(place):
            return place[int(part)]
        if not part.isdigit() and len(place) == 1:
            return _step(place[0], part, where, create)
        raise ValueError(f"{where} has the entries 0 to {len(place) - 1}, not {part!r}.")
    if isinstance(place, dict):
        if place.get(part) is None and create:
            place[part] = {}
        return place[part]
    raise ValueError(f"{where} is {place!r}, which has no {part!r}.")


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises on a key that is not known, naming the nearest one that is."""
    known = list(dict.fromkeys(known))
    for key in values:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known)[:30])}."
        raise ValueError(f"{where} has no {key!r}; {remedy}")


def refuse_variables(value: Any, where: str) -> None:
    """Raises on text with a shell's variable in it: a recipe is data, and what it says must not depend on a shell."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            refuse_variables(part, f"{where}.{key}")
    elif isinstance(value, list):
        for place, part in enumerate(value):
            refuse_variables(part, f"{where}.{place}")
    elif isinstance(value, str) and (found := _VARIABLE.search(value)):
        raise ValueError(
            f"{where} is {value!r}: a recipe does not expand {found[0]}; write it out, or let the shell do it: "
            f'--{where}="{value}".'
        )
