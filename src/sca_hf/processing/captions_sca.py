"""Captions and tasks: text of regions to ids and back."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .prompts_sca import depth_of, expected, nest


IGNORED = -100
# Lengths of captions by name; a number of words is one too.
LENGTHS = ("short", "sentence", "detailed")
# How far a number of words may be from one that a model learned, as a factor.
_NEAR = 1.25


def region_captions(captions: Any, counts: Sequence[int]) -> list[list[str | None]]:
    """Bring captions to one string per region of each image; None where a region has none to learn.

    Args:
        captions: [image][region] of strings; for one image, [region]; for one region, a string.
        counts: regions of each image.
    """
    by_image = [list(regions) if regions is not None else [] for regions in nest(captions, "captions", len(counts))]
    for image, (regions, count) in enumerate(zip(by_image, counts, strict=True)):
        if len(regions) != count:
            raise ValueError(
                f"captions: image {image} has {len(regions)} caption(s) for {count} region(s); pass one per region, "
                "None for a region without one."
            )
        for region, caption in enumerate(regions):
            if caption is not None and (not isinstance(caption, str) or not caption.strip()):
                raise ValueError(f"captions: image {image}, region {region} is {caption!r}; give a text, or None.")
    return by_image


def encode_captions(
    captions: list[list[str | None]],
    tokenizer: Any,
    shape: tuple[int, int],
    max_length: int,
    add_bos: bool,
    pad_to: int = 0,
) -> dict[str, np.ndarray]:
    """Tokenize captions to right-padded ids that end with EOS.

    Args:
        captions: per image and region.
        tokenizer: any of the library's.
        shape: (B, R).
        max_length: tokens a caption is cut to, EOS (and BOS) included.
        add_bos: the captions begin with BOS.
        pad_to: pad to at least this many tokens.

    Returns:
        `input_ids`, `attention_mask` and `labels` (B, R, T) int64. Labels are the ids, `IGNORED` on padding: found by
        length, so that EOS stays a target where it doubles as the padding token.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise ValueError("the tokenizer has no EOS token, so captions could not end; set tokenizer.eos_token.")
    if add_bos and bos is None:
        raise ValueError("caption_add_bos is set but the tokenizer has no BOS token; set tokenizer.bos_token.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    head = [bos] if add_bos else []
    if max_length < len(head) + 2:
        raise ValueError(f"captions need at least {len(head) + 2} tokens, the limit is {max_length}.")
    where = [(i, r) for i, regions in enumerate(captions) for r, caption in enumerate(regions) if caption is not None]
    texts = [(captions[i][r] or "").strip() for i, r in where]
    # Cut here and not by the tokenizer: which side it cuts is its own setting, and EOS has to stay.
    encoded = tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"] if texts else []
    rows = [[*head, *ids[: max_length - 1 - len(head)], eos] for ids in encoded]
    length = max([len(row) for row in rows] + [pad_to])
    input_ids = np.full((*shape, length), pad, np.int64)
    attention_mask = np.zeros((*shape, length), np.int64)
    labels = np.full((*shape, length), IGNORED, np.int64)
    for (image, region), row in zip(where, rows, strict=True):
        input_ids[image, region, : len(row)] = labels[image, region, : len(row)] = row
        attention_mask[image, region, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def region_tasks(task: Any, tasks: Sequence[str], counts: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Return the index of each region's task, (B, R) int64; padding takes the image's first, or 0.

    Args:
        task: one name for all, [image] of names, or [image][region] of names; for one image also [region].
        tasks: the names, in the order of their ids.
        counts: regions of each image.
        shape: (B, R).
    """
    ids = np.zeros(shape, np.int64)
    depth = 0 if isinstance(task, str) else depth_of(task, "task")
    if depth == 0:
        ids[:] = _task_id(task, tasks, "task")
        return ids
    if depth == 1 and len(counts) == 1 and len(task) == counts[0]:
        task = [task]
        depth = 2
    if depth > 2 or len(task) != len(counts):
        raise ValueError(f"task names {len(task)} image(s), the call has {len(counts)}; {expected('task')}.")
    for image, (names, count) in enumerate(zip(task, counts, strict=True)):
        if isinstance(names, str):
            ids[image] = _task_id(names, tasks, f"task: image {image}")
        elif names is None or len(names) != count:
            raise ValueError(f"task: image {image} has {count} region(s), got {names!r}; {expected('task')}.")
        else:
            ids[image, :count] = [
                _task_id(name, tasks, f"task: image {image}, region {r}") for r, name in enumerate(names)
            ]
    return ids


def chosen_task(text: Any, task: Any, tasks: Sequence[str], num_images: int) -> Any:
    """Return the task, or those of the images, as `task` or `text` names them, or else the default."""
    default = "caption" if "caption" in tasks else tasks[-1]
    named = [] if text is None else text_tasks(text, tasks, num_images)
    if any(named) and task is not None:
        raise ValueError(f"the task is given twice, as text={text!r} and task={task!r}; remove one of them.")
    return [name or default for name in named] or default if task is None else task


def length_task(task: str, length: Any, tasks: Sequence[str]) -> str:
    """Return the name of the task that writes captions of a length, `caption:detailed` or `caption:12`.

    Args:
        task: the task without a length.
        length: one of `LENGTHS`, or a number of words; the nearest number that the model learned counts.
        tasks: the model's.

    Raises:
        ValueError: the model learned no such length.
    """
    known = {name.removeprefix(f"{task}:"): name for name in tasks if name.startswith(f"{task}:")}
    words = int(length) if type(length) is int or (isinstance(length, str) and length.isdecimal()) else 0
    if isinstance(length, str) and length in known:
        return known[length]
    numbers = [int(name) for name in known if name.isdecimal()] if words > 0 else []
    nearest = min(numbers, key=lambda number: abs(math.log(number / words)), default=0)
    if nearest and max(nearest, words) <= _NEAR * min(nearest, words):
        return known[str(nearest)]
    learned = f"only {', '.join(known)}" if known else "none (add_lengths, or model.lengths in a recipe, adds some)"
    raise ValueError(f"length is {length!r:.60}, but of lengths for the task {task!r} this model learned {learned}.")


def region_lengths(ids: np.ndarray, length: Any, tasks: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """Return the tasks `ids` (B, R) of regions whose captions are to have a length.

    Args:
        length: one for all, [image], or [image][region]; for one image also [region]; None leaves a region's task.
        counts: regions of each image.
    """
    nested = (list, tuple, np.ndarray)
    rows: list[Any] = list(length) if isinstance(length, nested) else [length] * len(counts)
    if len(counts) == 1 and len(rows) == counts[0] and not any(isinstance(row, nested) for row in rows):
        rows = [rows]
    if len(rows) != len(counts):
        raise ValueError(f"length names {len(rows)} image(s), the call has {len(counts)}; {expected('length')}.")
    rows = [row if isinstance(row, nested) else [row] * count for row, count in zip(rows, counts, strict=True)]
    if [len(row) for row in rows] != list(counts):
        raise ValueError(
            f"length has {list(map(len, rows))} entries for {list(counts)} regions; {expected('length')}."
        )
    ids = ids.copy()
    for image, row in enumerate(rows):
        for region, one in enumerate(row):
            if one is not None:
                ids[image, region] = tasks.index(length_task(tasks[ids[image, region]], one, tasks))
    return ids


def text_tasks(text: Any, tasks: Sequence[str], num_images: int) -> list[str | None]:
    """Read the `text` argument: nothing, or the name of a task, for all images or for each; None where it is empty."""
    texts = [text] * num_images if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(entry, str) for entry in texts):
        raise TypeError(f"text is a string or one string per image, got {type(text).__name__}; {_text_use(tasks)}.")
    if len(texts) != num_images:
        raise ValueError(f"text has {len(texts)} entries for {num_images} image(s); {_text_use(tasks)}.")
    for image, entry in enumerate(texts):
        if entry.strip() and entry.strip() not in tasks:
            raise ValueError(f"text of image {image} is {entry!r}; {_text_use(tasks)}.")
    return [entry.strip() or None for entry in texts]


def decode_rows(
    rows: Sequence[Sequence[int]], tokenizer: Any, add_bos: bool, skip_special_tokens: bool, **kwargs: Any
) -> list[str]:
    """Decode ids to stripped texts; negative ids are ignored and, without special tokens, all that follows EOS."""
    rows = [[int(token) for token in row if token >= 0] for row in rows]
    if skip_special_tokens and (eos := tokenizer.eos_token_id) is not None:
        # Some tokenizers use one token as BOS and EOS: where captions begin with it, it ends nothing there.
        start = 1 if add_bos and tokenizer.bos_token_id == eos else 0
        rows = [row[: row.index(eos, start)] if eos in row[start:] else row for row in rows]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=skip_special_tokens, **kwargs) if rows else []
    return [text.strip() for text in texts]


def as_id_array(sequences: Any) -> Any:
    """Return ids as an int64 numpy array, or unchanged where they are ragged lists."""
    if isinstance(sequences, torch.Tensor):
        return sequences.detach().cpu().numpy()
    try:
        return np.asarray(sequences, np.int64)
    except (TypeError, ValueError):
        return sequences


def split_output(outputs: Any, region_mask: Any) -> tuple[Any, Any]:
    """Take ids and region mask out of what `generate` returned; ids alone pass through."""
    if isinstance(outputs, dict) or hasattr(outputs, "sequences"):
        outputs = dict(outputs)
        if outputs.get("sequences") is None:
            raise ValueError("the output has no sequences to decode; pass the output of generate.")
        return outputs["sequences"], region_mask if region_mask is not None else outputs.get("region_mask")
    return outputs, region_mask


def id_rows(ids: np.ndarray) -> list[list[int]]:
    """Return ids (..., T) as a flat list of rows."""
    # Without -1: an empty text has ids of length 0, and then -1 could stand for any number of rows.
    return ids.reshape(math.prod(ids.shape[:-1]), ids.shape[-1]).tolist()


def decode_nested(ids: Any, decode: Callable[[Any], list[str]]) -> list[Any]:
    """Decode ids (..., T), or ragged lists of ids, to texts nested as the sequences are.

    Args:
        ids: an array, or lists.
        decode: turns a flat list of sequences into texts.
    """
    if isinstance(ids, np.ndarray):
        texts: list[Any] = decode(id_rows(ids))
        shape = ids.shape[:-1]
        for size in reversed(shape[1:]):
            texts = [texts[i : i + size] for i in range(0, len(texts), size)] if size else []
        return texts if all(shape[1:]) else [[] for _ in range(shape[0])]
    nested = (list, tuple)
    if ids and all(isinstance(row, nested) and not any(isinstance(token, nested) for token in row) for row in ids):
        return decode(ids)
    return [decode_nested(row, decode) if len(row) else [] for row in ids]


def best_caption(caption: Any, score: Any) -> tuple[str, Any]:
    """Return the caption of a region and its score; of several, nested as `generate` gives them, the likeliest.

    Args:
        caption: a string, or lists of strings.
        score: its mean log-probability, or lists of as many; None where they were not computed.
    """
    while isinstance(caption, list):
        best = 0 if score is None else max(range(len(caption)), key=lambda index: score[index])
        caption, score = caption[best], None if score is None else score[best]
    return caption, score


def _task_id(name: Any, tasks: Sequence[str], where: str) -> int:
    if name not in tasks:
        raise ValueError(f"{where}: unknown task {name!r}; known are {', '.join(map(repr, tasks))}.")
    return list(tasks).index(name)


def _text_use(tasks: Sequence[str]) -> str:
    return (
        "the model takes no prompt text, only the name of a task "
        f"({', '.join(map(repr, tasks))}) or an empty text; pass training captions as captions="
    )


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of the words of a tokenizer with their ids."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(words.encode()).hexdigest()


def check_vocabulary(tokenizer: Any, digest: str | None) -> None:
    """Refuse a tokenizer that is not the one that a processor was saved with; None: it was not said."""
    if digest is not None and vocabulary_digest(tokenizer) != digest:
        raise ValueError(
            "the tokenizer has other words or ids than the one that the processor was saved with, and would say other "
            "words: restore its files; where it was changed on purpose, save both with ScaProcessor.save_pretrained."
        )


def check_caption_settings(tasks: Any, max_caption_length: Any) -> None:
    """Refuse settings of a processor that no caption could be made with; they come from a repository."""
    if not isinstance(tasks, (list, tuple)) or not tasks or not all(isinstance(task, str) for task in tasks):
        raise ValueError(f"tasks are a list of at least one name, got {tasks!r}.")
    if not isinstance(max_caption_length, int) or max_caption_length < 1:
        raise ValueError(f"max_caption_length is {max_caption_length!r}, expected a whole number from 1 on.")
