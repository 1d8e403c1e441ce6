"""What the processor returns: a batch that keeps its coordinates exact, joins with others, and makes rows."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils.hub import cached_file


# What stands in the unused slots of a batch, where it is not 0.
_FILL = {"input_labels": -10, "mask_index": -1, "labels": -100}


# A class in a file of the same repository; of another (`name--file.Class`) the library would run what it has today.
_CLASS_BESIDE = re.compile(r"\w+\.\w+")
_SETTINGS_FILES = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class CheckedLoading:
    """`from_pretrained` of [`ScaProcessor`], for repositories of others."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a processor as the library does, but no code of another repository, and none unasked.

        Raises:
            ValueError: a file of settings names code that does not lie beside it.
        """
        hub = ("cache_dir", "token", "local_files_only", "proxies", "revision", "subfolder", "force_download")
        where = {name: kwargs[name] for name in hub if name in kwargs}
        absent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        for name in _SETTINGS_FILES:
            file = cached_file(pretrained_model_name_or_path, name, **where, **absent)
            if file is not None:
                _check_code(file)
        kwargs.setdefault("trust_remote_code", False)  # the library would ask
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        except (TypeError, AttributeError, LookupError, ArithmeticError, json.JSONDecodeError, UnicodeError) as error:
            raise ValueError(
                f"{pretrained_model_name_or_path}: a file of its processor is damaged, or has a value of a wrong type "
                f"({type(error).__name__}: {error}); restore it as it was saved."
            ) from error


def _check_code(file: str) -> None:
    try:
        rest = [json.loads(Path(file).read_text(encoding="utf-8"))]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}; restore it as it was saved.") from None
    while rest:
        value = rest.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        rest += inner
        named = (value.get("auto_map") or {}) if isinstance(value, dict) else {}
        if not isinstance(named, dict):
            raise ValueError(f"{file}: auto_map must be a mapping, got {named!r}.")
        for key, references in named.items():
            for one in references if isinstance(references, list) else [references]:
                if one is not None and not (isinstance(one, str) and _CLASS_BESIDE.fullmatch(one)):
                    raise ValueError(
                        f"{file}: auto_map[{key!r}] is {one!r}; it may only name a class in a file of the same "
                        "repository."
                    )


class ScaBatch(BatchFeature):
    """What [`ScaProcessor`] returns: a dict whose `.to(dtype)` casts pixels and embeddings, never coordinates."""

    def to(self, *args: Any, **kwargs: Any) -> "ScaBatch":
        """Move all tensors to a device, cast `pixel_values` and `image_embeddings` to a floating dtype, in place."""
        device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        for key, value in self.data.items():
            if isinstance(value, torch.Tensor):
                cast = key in ("pixel_values", "image_embeddings")
                self.data[key] = (
                    value.to(*args, **kwargs) if cast else value.to(device=device, non_blocking=non_blocking)
                )
        return self

    @classmethod
    def cat(cls, batches: Sequence[Mapping[str, Any]]) -> "ScaBatch":
        """Join batches of tensors to one of all their images, padded as one call of the processor pads.

        Args:
            batches: what calls of the same processor returned, at least one.
        """
        if len(batches) == 1:
            return cls(dict(batches[0]))
        masks = 0
        values: dict[str, list[torch.Tensor]] = {name: [] for name in batches[0]}
        for batch in batches:
            for name, value in batch.items():
                values[name].append(value + masks * (value >= 0) if name == "mask_index" else value)
            masks += len(batch["input_masks"])
        return cls({name: _cat(parts, _FILL.get(name, 0)) for name, parts in values.items()})

    def as_columns(self) -> "ScaBatch":
        """Leave out what has no row per image: the mask prompts, of which there may be none.

        Raises:
            ValueError: there are mask prompts.
        """
        if len(self.data["input_masks"]):
            raise ValueError(
                "mask prompts are not one row per image, so a data set transform cannot return them: call the "
                "processor in the data loader's collate_fn."
            )
        return type(self)({name: value for name, value in self.data.items() if name != "input_masks"})


def column_arguments(columns: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call whose images are the columns of a data set, as `with_transform` hands them over.

    Args:
        columns: `image` or `images`, and arguments of a call by their names.
        given: the call's other arguments; None for those that are not given.
    """
    named = {"images" if name == "image" else name: value for name, value in columns.items()}
    if unknown := sorted(named.keys() - {"images", *given}):
        raise ValueError(
            f"the processor does not take the column {', '.join(map(repr, unknown))}: name the columns to pass, "
            f'with_transform(processor, columns=["image", "input_boxes"]); known are image, {", ".join(given)}.'
        )
    if "images" not in named:
        raise ValueError(f"the columns have no image: {', '.join(map(repr, columns)) or 'none'}.")
    if twice := sorted(name for name in named if given.get(name) is not None):
        raise ValueError(f"{', '.join(twice)} are both columns and arguments of the call; remove one of them.")
    return {**given, **named}


def _cat(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
    """Concatenate along the first axis, all others padded to the longest."""
    shape = [max(sides) for sides in zip(*(part.shape[1:] for part in parts), strict=True)]
    return torch.cat([_padded(part, shape, fill) for part in parts])


def _padded(part: torch.Tensor, shape: list[int], fill: int) -> torch.Tensor:
    # torch counts the axes from the last.
    widths = [side for axis in range(part.ndim - 1, 0, -1) for side in (0, shape[axis - 1] - part.shape[axis])]
    return F.pad(part, widths, value=fill) if any(widths) else part


__all__ = ["CheckedLoading", "ScaBatch", "column_arguments"]
