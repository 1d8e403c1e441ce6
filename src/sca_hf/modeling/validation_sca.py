"""What a configuration and a call may ask for.

A configuration comes from a repository and says what is built, read and called: it is checked when it is made, before
anything follows from it. Every fault is a [`ValueError`] that names the field. The tensors of a call are checked for
shapes that fit together.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file


logger = logging.get_logger(__name__)

# Of what `save_pretrained` writes. A change that older code would misread raises it.
FORMAT_VERSION = 2

# A class in a file beside the configuration. Another repository (`name--file.Class`) or folder is never needed.
_CLASS_BESIDE = re.compile(r"\w+\.\w+")
_QUANTIZATION = re.compile(r"quant_method|_?load_in_[48]bit|llm_int8_\w+|bnb_4bit_\w+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_BASE_FIELDS = {"repo_id", "revision", "subfolder", "path", "sha256", "part", "gguf_file"}
_DEEPEST = 20
# Bounds of every whole number of a configuration, far above any model that exists: what counts parts, or is not known,
# may cost time for each, where the size of a tensor or an id costs nothing before weights are there. Beyond them a
# refusal takes no time. Within, building stops at the most modules, after some 100 MB and 5 s.
_MOST, _LARGEST, _MOST_MODULES = 1024, 2**25, 20_000
_FROM_END = re.compile(r".*(layer|index|idx|clamp_len|bound)")
_LARGE = re.compile(
    r"num_(.*experts|position_embeddings|centroids|pos_feats)|(?!(num|n)_).*"
    r"(size|dim|width|embd|embed|embedding|inner|hidden|model|ff|ffn|channels?|rank|vocab|tokens?|token|ids?|index|"
    r"positions?|ctx|context|length|seq|len|window|max|topk|top_k|scale|floor|chunk|seed|sampling_rate|samples|extent|ssm|offset|"
    r"theta|factor|distance|headdim|lr|steps).*|n_(embd|embed|inner|positions|ctx|ff)"
)
_EPSILON = re.compile(r".*(_eps|epsilon)|eps")
# What is divided by; a window of 0 pixels is SAM's word for the whole image.
_POSITIVE = re.compile(
    r"(image|patch|hidden)_size|num_channels|num_attention_heads|n_embd|n_head|attention_downsample_rate"
)
_FRACTIONS = re.compile(
    r".*(dropout|pdrop|initializer_range|initializer_factor|label_smoothing|loss_weight|ratio|theta)"
)
_LAYERS = re.compile(r"(num_.*layers?|n_layers?|num_hidden_layers|.*_layers)")
_SIZES = re.compile(r"(.*(size|width|dim|channels|heads|tokens|num_pos_feats|n_embd|n_inner|n_head))")


def check_format(version: Any, what: str) -> None:
    """Refuse a format that is newer than this code.

    Args:
        version: `format_version` as it is stored.
        what: what has that format, for the message.
    """
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{what} has format_version {version!r}, expected a whole number of at least 1.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{what} has format {version}, but this code supports formats up to {FORMAT_VERSION}: update sca-hf (pip "
            "install -U sca-hf), or load with trust_remote_code=True, which takes the code from the repository."
        )


def check_references(fields: Mapping[str, Any]) -> None:
    """Refuse references to code that does not lie beside the configuration, and settings that have code fetched.

    Args:
        fields: the fields of any JSON file of a repository, which may nest.
    """
    named = {f"auto_map[{key!r}]": value for key, value in _mapping(fields, "auto_map").items()}
    for task, pipeline in _mapping(fields, "custom_pipelines").items():
        named[f"custom_pipelines[{task!r}]"] = pipeline.get("impl") if isinstance(pipeline, Mapping) else pipeline
    for key, value in fields.items():
        # Kernels of the Hub are code of the Hub; so is what most kinds of quantization are computed by.
        names = value.values() if isinstance(value, Mapping) else [value]
        if str(key).endswith("_implementation") and not all(n is None or re.fullmatch(r"\w+", str(n)) for n in names):
            raise ValueError(f"{key} is {value!r}, expected a word such as sdpa: kernels of the Hub are not loaded.")
        if key == "quantization_config" and isinstance(value, Mapping):
            others = sorted(str(name) for name in value if not _QUANTIZATION.fullmatch(str(name)))
            if value.get("quant_method") != "bitsandbytes" or others:
                raise ValueError(
                    f"quantization_config is {dict(value)!r:.200}, but only bitsandbytes is loaded from a repository; "
                    "quantize the loaded model (quantize_language_model)."
                )
        for inner in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(inner, Mapping):
                check_references(inner)
    for where, reference in named.items():
        for one in reference if isinstance(reference, (list, tuple)) else [reference]:
            if one is not None and not (isinstance(one, str) and _CLASS_BESIDE.fullmatch(one)):
                raise ValueError(
                    f"{where} is {one!r}; it may only name a class in a file of the same repository, as in "
                    "'modeling_sca.ScaForConditionalGeneration'. The configuration has been tampered with."
                )


# What may hold references; the others hold words, or weights.
_DATA_FILES = re.compile(r"tokenizer\.json|vocab.*\.json|.*\.index\.json|added_tokens\.json")
_ABSENT = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
_SETTINGS_FILES = ("processor_config", "preprocessor_config", "tokenizer_config", "generation_config", "config")


def check_settings_files(path: Any, where: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Refuse a repository any of whose JSON files refers to code elsewhere; run before it is loaded or published.

    Returns what the files hold, by their names without suffix.

    Args:
        path: folder or repository id.
        where: for a repository id: `revision`, `token`, `cache_dir`, ...
    """
    folder = Path(path, (where or {}).get("subfolder") or "")
    if folder.is_dir():
        files = [file for file in sorted(folder.rglob("*.json")) if not _DATA_FILES.fullmatch(file.name)]
    else:
        found = [cached_file(path, f"{name}.json", **(where or {}), **_ABSENT) for name in _SETTINGS_FILES]
        files = [Path(file) for file in found if file is not None]
    contents: dict[str, Any] = {}
    for file in files:
        try:
            fields = contents[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            if file.stem in _SETTINGS_FILES:
                raise ValueError(
                    f"{file} is not valid JSON, or cut short: {error}; restore it as it was saved."
                ) from None
            continue
        if isinstance(fields, Mapping):
            try:
                check_references(fields)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}: {error}") from None
    return contents


def check_numbers(fields: Mapping[str, Any]) -> None:
    """Refuse NaN anywhere, negative sizes, and sizes beyond any model's."""
    for name, value in _leaves(fields):
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} of the configuration is not a number (NaN).")
        if _EPSILON.fullmatch(_field(name)) and value is not None and not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} of the configuration is {value!r}, expected a number from 0 to below 1.")
        if isinstance(value, float) and value.is_integer() and _known_size(name):
            value = int(value)
        if _known_size(name) and isinstance(value, (str, float)) and not name.endswith("]"):
            raise ValueError(f"{name} of the configuration is {value!r}, expected a whole number.")
        highest = _LARGEST if _LARGE.fullmatch(_field(name)) else _MOST
        # Negative numbers are words: -1 is the last, or none; layers may be counted from the end.
        lowest = -_MOST if _FROM_END.fullmatch(_field(name)) else -1
        if isinstance(value, int) and not lowest <= value <= highest:
            raise ValueError(f"{name} of the configuration is {value}; no model has more than {highest} there.")
        if _FRACTIONS.fullmatch(_field(name)) and isinstance(value, str):
            raise ValueError(f"{name} of the configuration is {value!r}, expected a number.")
        if _POSITIVE.fullmatch(_field(name)) and isinstance(value, int) and value < 1:
            raise ValueError(f"{name} of the configuration is {value}, expected at least 1.")
        if _field(name).endswith("dtype") and not _is_dtype(value):
            raise ValueError(f"{name} of the configuration is {value!r}, expected a name such as 'float32'.")


def _is_dtype(value: Any) -> bool:
    named = getattr(torch, str(value).removeprefix("torch."), None)
    return value in (None, "auto") or isinstance(named, torch.dtype)


@contextmanager
def limited_modules() -> Iterator[None]:
    """Refuse to build a model of more modules and weights than any that exists, whatever asks for it.

    Raises:
        ValueError: there are more than 20,000; by then building has taken some 100 MB and 5 s.
    """
    built = 0

    def count(*_: Any) -> None:
        nonlocal built
        built += 1
        if built > _MOST_MODULES:
            raise ValueError(f"the configuration describes a model of more than {_MOST_MODULES} modules and weights.")

    # A list of modules is made before it becomes one.
    hooks = (register_module_module_registration_hook, register_module_parameter_registration_hook)
    handles = [register(count) for register in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_number(value: Any) -> bool:
    """Whether a value of a configuration is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def sizes(fields: Any) -> Iterator[tuple[str, int]]:
    """Names and values of all layer counts and widths of a configuration, its nested ones included."""
    for name, value in _leaves(fields):
        if _known_size(name) and isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def check_base_models(repos: Any) -> None:
    """Refuse a `base_model_repos` that is not what `save_pretrained` writes."""
    if repos is None:
        return
    if not isinstance(repos, Mapping) or set(repos) != {"sam", "language_model"}:
        raise ValueError(f"base_model_repos must say where 'sam' and 'language_model' come from, got {repos!r}.")
    for name, source in repos.items():
        where = f"base_model_repos[{name!r}]"
        if not isinstance(source, Mapping) or not all(isinstance(value, str) for value in source.values()):
            raise ValueError(f"{where} must be a mapping of texts, got {source!r}.")
        if unknown := sorted(set(source) - _BASE_FIELDS):
            raise ValueError(f"{where} has the unknown fields {unknown}.")
        if ("repo_id" in source) == ("path" in source):
            raise ValueError(f"{where} must have either a repo_id or a path, got {dict(source)}.")
        needed = "revision" if "repo_id" in source else "sha256"
        if not source.get(needed):
            raise ValueError(f"{where} is not pinned: it has no {needed}.")
        if not _COMMIT.fullmatch(source.get("revision", "0" * 40)):
            raise ValueError(
                f"{where} is not pinned: its revision {source['revision']!r} is not a commit (40 digits)."
            )
        if not _REPOSITORY_ID.fullmatch(source.get("repo_id", "x")) or ".." in source.get("repo_id", ""):
            raise ValueError(f"{where}: {source['repo_id']!r} is not a repository id.")
        for key in ("subfolder", "revision", "gguf_file"):
            outside = any(part in ("", "..") for part in re.split(r"[/\\]", source.get(key, "x")))
            if outside or (key == "gguf_file" and not source.get(key, ".gguf").endswith(".gguf")):
                reason = (
                    "is not a GGUF file of the repository" if key == "gguf_file" else "points outside the repository"
                )
                raise ValueError(f"{where}: the {key} {source[key]!r} {reason}.")


def check_shard_index(path: Path) -> list[str]:
    """Names of the weight files that an index lists; one that names files elsewhere is refused.

    Args:
        path: the file `model.safetensors.index.json`.
    """
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of weight files (a JSON object with a weight_map).") from error
    for name in names:
        if not isinstance(name, str) or re.split(r"[/\\]", name) != [name] or not name.endswith(".safetensors"):
            raise ValueError(f"{path} names {name!r}; weights must be .safetensors files next to their index.")
    return sorted(names)


def check_weight_files(
    path: Any, where: Mapping[str, Any], describe: Callable[[], tuple[int, frozenset[str]]], packed: bool = False
) -> None:
    """Refuse weight files outside the repository, far fewer weights than described, and what are no numbers.

    Missing weights are initialized before their absence is noticed, and would fill the memory.

    Args:
        path: folder or repository id.
        where: `revision`, `token`, `cache_dir`, ...
        describe: returns the number of parameters that the configuration describes, and the names of buffers that
            are not floating-point numbers.
        packed: the weights are quantized, so that integers hold them.
    """
    found = cached_file(path, SAFE_WEIGHTS_NAME, **where, **_ABSENT)
    files = [found]
    if found is None:
        index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **where, **_ABSENT)
        if index is None:
            return  # the library says what it looked for
        files = [cached_file(path, name, **where) for name in check_shard_index(Path(index))]
    (described, integers), stored = describe(), sum(os.path.getsize(file) for file in files)
    # Quantized weights have up to two parameters a byte; small models may be as they like.
    if described > 4 * max(stored, 2**24):
        raise ValueError(
            f"the configuration of {path} describes {described:,} parameters, but its weight files hold {stored:,} "
            "bytes: they do not belong together."
        )
    for file in files:
        check_weights(file, integers, packed)


def check_weights(file: Any, integers: frozenset[str] = frozenset(), packed: bool = False) -> None:
    """Refuse a safetensors file with weights that are not finite floating-point numbers: captions would be empty.

    Args:
        file: the file.
        integers: names of buffers that may be of another type.
        packed: quantized weights, which may all be.
    """
    with _opened(file) as weights:
        for name in weights.keys():  # noqa: SIM118, it is not a mapping
            weight = weights.get_tensor(name)
            if not weight.is_floating_point() and not packed and name not in integers:
                raise ValueError(
                    f"{name} of {file} holds {weight.dtype}, expected floating-point numbers: restore the file as it "
                    "was saved."
                )
            if weight.is_floating_point() and not is_finite(weight):
                raise ValueError(
                    f"{name} of {file} holds infinite values or NaN: the file is damaged, or training diverged before "
                    "it was saved."
                )


@contextmanager
def _opened(file: Any) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except SafetensorError as error:
        raise ValueError(f"{file} is cut short or damaged ({error}): restore it as it was saved.") from error


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN, at the cost of a sum."""
    if values.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        values = values.float()
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    # The sum of finite values may be infinite too; that is rare enough to be looked at more closely.
    return bool(torch.isfinite(values.sum(dtype=wide))) or bool(torch.isfinite(values).all())


def _known_size(name: str) -> bool:
    return bool(_LAYERS.fullmatch(_field(name)) or _SIZES.fullmatch(_field(name)))


def _field(name: str) -> str:
    return name.split(".")[-1].split("[")[0]


def _mapping(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} of the configuration must be a mapping, got {value!r}.")
    return value


def _leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every number or text of nested mappings and lists, with its name."""
    if depth > _DEEPEST:
        raise ValueError(f"{name[:100]}... of the configuration is nested deeper than {_DEEPEST} levels.")
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            yield from _leaves(inner, f"{name}[{position}]", depth + 1)
    else:
        yield name, value


_FORMS = {"input_points": "(B, R, P, 2)", "input_labels": "(B, R, P)", "input_boxes": "(B, R, 4)"}


def refuse_unknown(given: dict[str, Any], allowed: frozenset[str], method: str) -> None:
    """Refuse keyword arguments that would silently change nothing; wrappers pass None for those of other models."""
    unknown = sorted(name for name, value in given.items() if value is not None and name not in allowed)
    if unknown:
        raise TypeError(f"{method}() got unknown arguments {unknown}.")


def warn_of_lost_tasks(given: Mapping[str, Any], task_ids: Any, tasks: tuple[str, ...]) -> None:
    """Warn where a wrapper kept `task_ids` to itself, as PEFT's do with a `task_type`; what is `given` shows them."""
    if task_ids is None and "inputs_embeds" in given and len(tasks) > 1:
        logger.warning_once(
            "forward() was called by a wrapper that drops task_ids, like PEFT's with a task_type: every region is "
            "treated as 'caption'. If any has another task, remove task_type from the LoraConfig."
        )


def check_training_inputs(
    input_ids: torch.Tensor | None,
    labels: torch.Tensor | None,
    mask_labels: torch.Tensor | None,
    output_masks: bool | None,
) -> None:
    """Refuse targets without what is to be compared with them, and captions without a token."""
    if labels is not None and input_ids is None:
        raise ValueError("labels need input_ids: the language model reads the caption to predict its next token.")
    if input_ids is not None and not input_ids.shape[-1]:
        raise ValueError(f"input_ids {tuple(input_ids.shape)} have no tokens.")
    if mask_labels is not None and output_masks is False:
        raise ValueError("mask_labels need masks to compare with: remove output_masks=False.")


def check_prompts(batch_size: int, prompts: dict[str, torch.Tensor | None]) -> None:
    """Refuse prompt tensors whose shapes contradict each other, and coordinates in half precision."""
    given = {name: tensor for name, tensor in prompts.items() if tensor is not None}
    last = {"input_points": 2, "input_boxes": 4}
    for name, tensor in given.items():
        form = _FORMS.get(name, "(B, R)")
        if tensor.ndim != form.count(",") + 1 or (name in last and tensor.shape[-1] != last[name]):
            raise ValueError(f"{name} must be {form}, got {tuple(tensor.shape)}.")
        if name in last and tensor.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name} is {tensor.dtype}, which cannot hold sub-pixel positions; keep coordinates in float32 "
                "(the processor's output does so under .to(dtype))."
            )
    shapes = {name: tuple(tensor.shape[:2]) for name, tensor in given.items()}
    wrong = {name: shape for name, shape in shapes.items() if shape[0] != batch_size}
    if wrong or len(set(shapes.values())) > 1:
        raise ValueError(f"Prompts must agree on (B, R) for {batch_size} images, got {shapes}.")
    points, labels = prompts.get("input_points"), prompts.get("input_labels")
    if labels is not None and (points is None or labels.shape != points.shape[:-1]):
        shape = None if points is None else tuple(points.shape)
        raise ValueError(f"input_labels {tuple(labels.shape)} must have one label per point of input_points {shape}.")


def as_mask_table(
    masks: torch.Tensor | None, prompts: dict[str, torch.Tensor | None], images: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Mask prompts as (K, 4h, 4w) and their (B, R) index; SAM's own (B, 1, 4h, 4w) is shared by an image's regions.

    Args:
        masks: `input_masks` of the call.
        prompts: its other prompts, `mask_index` among them.
        images: (B, C, h, w).
    """
    index = prompts["mask_index"]
    if masks is None:
        if index is not None and prompts.get("prompt_layout") is None:
            raise ValueError("mask_index indexes input_masks, which were not passed.")
        return None, index
    size = tuple(4 * side for side in images.shape[2:])
    if tuple(masks.shape[-2:]) == size:
        if index is not None and masks.ndim == 3:
            return masks, index
        if index is None and masks.ndim == 4 and masks.shape[:2] == (len(images), 1):
            given = next((x for x in prompts.values() if x is not None), None)
            regions = 1 if given is None else given.shape[1]
            return masks[:, 0], torch.arange(len(masks), device=masks.device)[:, None].expand(-1, regions)
    height, width = size
    raise ValueError(
        f"input_masks must be (K, {height}, {width}) with a mask_index, or ({len(images)}, 1, {height}, {width}) "
        f"without; got {tuple(masks.shape)} {'without' if index is None else 'with'} mask_index."
    )


def check_regional(regions: tuple[int, int], **tensors: torch.Tensor | None) -> None:
    """Refuse tensors that are not (B, R, ...) for the regions of the call, or whose further axes differ.

    Args:
        regions: (B, R).
        tensors: to compare by name; all must have the shape of the first that is given.
    """
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if any(shape[:2] != regions for shape in given.values()) or len(set(given.values())) > 1:
        raise ValueError(f"The prompts are for (B, R) = {regions}; got {given}.")


__all__ = [
    "as_mask_table",
    "check_prompts",
    "check_regional",
    "check_settings_files",
    "check_training_inputs",
    "refuse_unknown",
    "warn_of_lost_tasks",
    "FORMAT_VERSION",
    "check_base_models",
    "check_format",
    "check_numbers",
    "check_references",
    "is_number",
    "limited_modules",
    "check_shard_index",
    "check_weight_files",
    "check_weights",
    "is_finite",
    "sizes",
]
