"""Convert a checkpoint of the SCA authors into a whole repository of this package."""

import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ..files import check_pickle, file_sizes, staged
from ..modeling.configuration_sca import ScaConfig, without_dropout
from ..modeling.modeling_sca import ScaForConditionalGeneration
from ..modeling.validation_sca import is_finite
from ..processing.processing_sca import ScaProcessor
from .info import check_saved_model
from .original import KeyPlan, OriginalFormatError, check_format, plan_keys, translate_config, translate_state_dict
from .private import NAMES


logger = logging.getLogger(__name__)

# What a saved model has beside the names of a repository.
_MODEL_FILE = re.compile(r"\w+\.py|(model|pytorch_model).*\.(safetensors|bin|json)")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass
class ConversionReport:
    """What a conversion did.

    Attributes:
        destination: folder of the new repository.
        parameters: number of parameters, tied ones once.
        renamed: keys taken over.
        dropped: stale buffers left out, by their original names.
        tied: names that were absent and share the tensor of another -> that other.
        untied: the file's head differs from its embedding although the configuration ties them.
        tokenizer: where the tokenizer came from; None: a model without a processor was written.
        notes: anything a person should know, one sentence each.
    """

    destination: Path
    parameters: int = 0
    renamed: int = 0
    dropped: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    untied: bool = False
    tokenizer: str | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.destination}: {self.renamed} weights converted ({self.parameters:,} parameters), "
            f"{len(self.dropped)} stale buffers dropped, {len(self.tied)} tied.",
            *self.notes,
        ]
        return "\n".join(lines)


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    sam: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    caption_add_bos: bool | None = None,
) -> ConversionReport:
    """Write a whole repository, which loads in three lines, from a checkpoint in the authors' format.

    Args:
        source: folder or repository id with their config.json and safetensors or .bin weights, in shards or not.
        destination: folder to write; a model that is there is replaced as a whole, once the new one is complete.
        tokenizer: the language model's tokenizer: folder, repository id or object. None looks in the source folder
            and then where the configuration says the language model came from.
        sam: folder or repository id to take the image processor from. None makes SAM's own for the image size.
        revision: of `source`, where it is a repository id.
        dtype: precision to store. None keeps the checkpoint's.
        caption_add_bos: captions begin with BOS. None: yes for Llama and Mistral, whose tokenizers put it in front
            when the authors trained.

    Raises:
        OriginalFormatError: the checkpoint is of another format, or weights do not fit, named one by one.
        CheckpointError: nothing readable at `source`.
    """
    destination = Path(destination)
    folder = fetch_checkpoint(source, revision)
    _check_destination(folder, destination)
    original = read_config(folder)
    state = read_state_dict(folder)
    check_format(original, state)
    if broken := [name for name, weight in state.items() if weight.is_floating_point() and not is_finite(weight)]:
        raise OriginalFormatError(
            f"{len(broken)} weights of {folder} hold infinite values or NaN ({', '.join(broken[:3])}): the checkpoint "
            "is damaged, or its training diverged."
        )
    report = ConversionReport(destination)
    loaded = _find_tokenizer(tokenizer, folder, original, report)
    if caption_add_bos is None and loaded is not None:
        # Whether today's tokenizer class adds it by itself says nothing about the training of 2023.
        caption_add_bos = translate_config(original).caption_add_bos and loaded.bos_token_id is not None
    config = translate_config(original, caption_add_bos)
    model = _build_model(config, state, report)
    if dtype is not None:
        model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    if loaded is not None:
        _fill_special_tokens(model, loaded)
        model.check_tokenizer(loaded)
    image_processor = None if sam is None else AutoImageProcessor.from_pretrained(sam, trust_remote_code=False)
    processor = None if loaded is None else ScaProcessor.from_config(model.config, loaded, image_processor)
    report.parameters = model.num_parameters()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with staged(destination) as part:
        model.save_pretrained(part)
        if processor is not None:
            processor.save_pretrained(part)
        check_saved_model(part, with_processor=processor is not None)
    return report


def _check_destination(folder: Path, destination: Path) -> None:
    if destination.exists() and not destination.is_dir():
        raise FileExistsError(f"{destination} is a file; the converted repository needs a folder.")
    if folder.resolve().is_relative_to(destination.resolve()):
        raise FileExistsError(f"{destination} is the source itself or holds it; converting would destroy it.")
    names = file_sizes(destination) if destination.exists() else ()
    if other := next((name for name in names if name not in NAMES and not _MODEL_FILE.fullmatch(name)), None):
        raise FileExistsError(
            f"{destination} has {other}, which is not of a saved model and would be lost: convert to another folder."
        )


def _build_model(
    config: ScaConfig, state: dict[str, torch.Tensor], report: ConversionReport
) -> ScaForConditionalGeneration:
    """A model on the CPU with the translated weights; its buffers that are not saved stay without values."""
    config.text_config = without_dropout(config.text_config)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    model, plan = plan_model(config, shapes)
    ours = translate_state_dict(state, plan, config.text_config.num_attention_heads)
    if _head_differs(model, ours):
        # The original ran a reloaded checkpoint with the head in its file, tied or not, so that is what the mixer saw.
        config.text_config.tie_word_embeddings = False
        report.untied = True
        report.notes.append(
            "The language model's head differs from its embedding although the configuration ties them; both are kept "
            "as they are, and tie_word_embeddings is now false."
        )
        model, plan = plan_model(config, shapes)
    report.renamed, report.dropped, report.tied = len(plan.targets), plan.dropped, plan.filled
    model.load_state_dict(ours, strict=True, assign=True)
    model.tie_weights()
    return model


def plan_model(
    config: ScaConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[ScaForConditionalGeneration, KeyPlan]:
    """The described model on the meta device, without values, and what becomes of each original key.

    Args:
        shapes: original name -> shape.
    """
    with torch.device("meta"):
        model = ScaForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return model, plan_keys(shapes, expected, model.all_tied_weights_keys, config.text_config.model_type)


def _head_differs(model: ScaForConditionalGeneration, ours: dict[str, torch.Tensor]) -> bool:
    differing = [
        (name, source)
        for name, source in model.all_tied_weights_keys.items()
        if not torch.equal(ours[name], ours[source])
    ]
    for name, source in differing:
        if not name.startswith("language_model."):
            raise OriginalFormatError(f"{name} and {source} are one tensor in SAM, but the checkpoint has two values.")
    return bool(differing)


def _find_tokenizer(
    given: Any, folder: Path, original: dict[str, Any], report: ConversionReport
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was given, or that lies in the source folder, or of the repository the LM came from."""
    if isinstance(given, PreTrainedTokenizerBase):
        report.tokenizer = given.name_or_path or type(given).__name__
        return given
    if given is not None:
        report.tokenizer = str(given)
        return AutoTokenizer.from_pretrained(given, trust_remote_code=False)
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        try:
            # The folder's config.json has a model type that the library does not know; it must not be asked.
            loaded = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            logger.info("no tokenizer in %s: %s", folder, error)
        else:
            report.tokenizer = str(folder)
            loaded.init_kwargs.pop("auto_map", None)  # its code is not taken over
            return loaded
    # What a stranger names is not looked up, neither on this disk nor on the Hub.
    named = original.get("text_config", {}).get("_name_or_path")
    hint = f"; the checkpoint names {named!r}, if you trust that" if named else ""
    report.notes.append(
        f"No tokenizer was found in {folder}: the model was written without a processor. Convert again with "
        f"tokenizer= (--tokenizer{hint}), or save a ScaProcessor into the folder."
    )
    return None


def _fill_special_tokens(model: ScaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Ids that the checkpoint's configuration leaves open come from the tokenizer, as in the authors' training."""
    for name in ("bos_token_id", "eos_token_id"):
        for config in (model.config.text_config, model.generation_config):
            if getattr(config, name, None) is None:
                setattr(config, name, getattr(tokenizer, name))


# In the order of preference.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.safetensors")


class CheckpointError(ValueError):
    """A folder or file that holds no readable checkpoint; the message says which and what to do."""


def fetch_checkpoint(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a checkpoint: `source` itself, or the download of the repository that it names."""
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{source} is a folder; a revision ({revision!r}) only applies to a repository id.")
        return folder
    if folder.exists():
        raise CheckpointError(f"{source} is a file; give the folder that holds config.json and the weights.")
    try:
        path = Path(snapshot_download(str(source), revision=revision, allow_patterns=list(_SMALL_FILES)))
        if not any(path.glob("*.safetensors")):
            snapshot_download(str(source), revision=revision, allow_patterns=["pytorch_model*.bin"])
    except HFValidationError as error:
        raise CheckpointError(f"{source} is neither a folder nor a repository id.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{source} is not a folder, and no such repository could be fetched: {error}") from error
    return path


def read_config(folder: Path) -> dict:
    """The `config.json` of a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold one JSON object, got a {type(config).__name__}.")
    return config


def read_state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint folder, on the CPU, in the precision it was saved in."""
    for whole, sharded in zip(_WHOLE, _SHARDED, strict=True):
        if (folder / whole).is_file():
            return _read_file(folder / whole)
        if (folder / sharded).is_file():
            return _read_shards(folder / sharded)
    raise CheckpointError(f"{folder} has no weights; looked for {', '.join((*_WHOLE, *_SHARDED))}.")


def _read_shards(index_path: Path) -> dict[str, torch.Tensor]:
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index_path} is not an index of shards (a JSON object with a weight_map).") from error
    state: dict[str, torch.Tensor] = {}
    for name in names:
        path = index_path.parent / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{index_path} names the shard {name!r}, which is not next to it.")
        state.update(_read_file(path))
    absent = [name for name in weight_map if name not in state]
    if absent:
        raise CheckpointError(
            f"the shards of {index_path} are missing {len(absent)} of its weights: {', '.join(absent[:10])}"
        )
    return state


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file does whatever it likes to the unpickler
        raise CheckpointError(
            f"{path} cannot be read as plain tensors, and nothing else is loaded: {error}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, got a {type(state).__name__}.")
    if wrong := [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(f"{path} must contain only tensors; these are not: {', '.join(wrong[:5])}.")
    for name, value in state.items():
        plain = value.layout == torch.strided and not value.is_quantized
        if not plain or value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} is not a plain tensor, or has more values than the file holds.")
    return state


def _check_archive(path: Path) -> None:
    """Refuse a file of torch's that unpacks to more than it is, or whose pickles would crash the interpreter.

    torch stores weights as they are, so that nothing of it is unpacked: a refusal takes no more than the file's table.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(5):  # the older format begins with as many
                check_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError(f"it unpacks to {unpacked} bytes, but torch compresses no weights")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as file:
                    check_pickle(file)


__all__ = ["ConversionReport", "convert", "plan_model"]
