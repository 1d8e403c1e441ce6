"""Captions and tasks: text of regions to ids and back."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .languages_sca import find_language
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


def asked_task(task: str, tasks: Sequence[str], length: Any = None, language: Any = None) -> str:
    """Return the name of the task that writes captions of a length and in a language, such as `caption:de:detailed`.

    Args:
        task: the task without either; what its name says of them already holds where they are None.
        tasks: the model's.
        length: one of `LENGTHS`, or a number of words; the nearest number that the model learned counts.
        language: a tag of BCP 47; the learned one that [`find_language`] finds counts.

    Raises:
        ValueError: the model learned no such length or language, or not both together.
    """
    if length is None and language is None:
        return task
    base, own_language, own_length = task_parts(task)
    known = {parts[1:]: name for name in tasks if (parts := task_parts(name))[0] == base}
    said, where = own_language, ""
    if language is not None:
        languages = list(dict.fromkeys(one for one, _ in known if one is not None))
        said = find_language(language, languages)
        if said is None:
            raise ValueError(_unknown("language", language, base, languages))
    if said is not None:
        where = f" in {said!r}"
    chosen = own_length
    if length is not None:
        lengths = [one for tongue, one in known if tongue == said and one is not None]
        chosen = _known_length(length, lengths)
        if chosen is None:
            raise ValueError(_unknown("length", length, base, lengths, where))
    if (said, chosen) not in known:
        raise ValueError(f"this model learned no captions of length {chosen!r}{where} for the task {base!r}.")
    return known[said, chosen]


def task_parts(name: str) -> tuple[str, str | None, str | None]:
    """Return what the name of a task is made of: the task without either, its language and its length."""
    base, *rest = name.split(":")
    lengths = [one for one in rest if one in LENGTHS or one.isdecimal()]
    return base, next((one for one in rest if one not in lengths), None), next(iter(lengths), None)


def learned(tasks: Sequence[str], what: str) -> list[str]:
    """Return the languages or the lengths (`what`: "language" or "length") that tasks are for, each once."""
    place = {"language": 1, "length": 2}[what]
    return list(dict.fromkeys(one for name in tasks if (one := task_parts(name)[place]) is not None))


def _known_length(length: Any, known: Sequence[str]) -> str | None:
    words = int(length) if type(length) is int or (isinstance(length, str) and length.isdecimal()) else 0
    if isinstance(length, str) and length in known:
        return length
    numbers = [int(name) for name in known if name.isdecimal()] if words > 0 else []
    nearest = min(numbers, key=lambda number: abs(math.log(number / words)), default=0)
    return str(nearest) if nearest and max(nearest, words) <= _NEAR * min(nearest, words) else None


def _unknown(what: str, value: Any, task: str, known: Sequence[str], where: str = "") -> str:
    listed = ", ".join(dict.fromkeys(known))
    has = f"only {listed}" if known else f"none (add_{what}s, or model.{what}s in a recipe, adds some)"
    return f"{what} is {value!r:.60}, but of {what}s for the task {task!r}{where} this model learned {has}."


def asked_tasks(
    ids: np.ndarray, tasks: Sequence[str], counts: Sequence[int], length: Any = None, language: Any = None
) -> np.ndarray:
    """Return the tasks `ids` (B, R) of regions whose captions are to have a length, or to be in a language.

    Args:
        length, language: one for all, [image], or [image][region]; for one image also [region]; None leaves a
            region's task.
        counts: regions of each image.
    """
    lengths, languages = _by_region(length, "length", counts), _by_region(language, "language", counts)
    ids = ids.copy()
    for image, rows in enumerate(zip(lengths, languages, strict=True)):
        for region, said in enumerate(zip(*rows, strict=True)):
            if said != (None, None):
                ids[image, region] = tasks.index(asked_task(tasks[ids[image, region]], tasks, *said))
    return ids


def tasks_in_languages(
    ids: np.ndarray, tasks: Sequence[str], counts: Sequence[int], languages: Sequence[str]
) -> np.ndarray:
    """Return the tasks (B, R, L) that write each region in each of L languages; `ids` (B, R) are those without."""
    table = np.zeros((len(tasks), len(languages)), np.int64)
    for one in {int(ids[image, region]) for image, count in enumerate(counts) for region in range(count)}:
        table[one] = [tasks.index(asked_task(tasks[one], tasks, None, tag)) for tag in languages]
        if len(set(table[one])) < len(languages):
            raise ValueError(f"language is {','.join(languages)!r}: two of them are the same for this model.")
    return table[ids]


def _by_region(value: Any, name: str, counts: Sequence[int]) -> list[Any]:
    """Return what is asked of each region of each image."""
    nested = (list, tuple, np.ndarray)
    rows: list[Any] = list(value) if isinstance(value, nested) else [value] * len(counts)
    if len(counts) == 1 and len(rows) == counts[0] and not any(isinstance(row, nested) for row in rows):
        rows = [rows]
    if len(rows) != len(counts):
        raise ValueError(f"{name} names {len(rows)} image(s), the call has {len(counts)}; {expected(name)}.")
    rows = [row if isinstance(row, nested) else [row] * count for row, count in zip(rows, counts, strict=True)]
    if [len(row) for row in rows] != list(counts):
        raise ValueError(f"{name} has {list(map(len, rows))} entries for {list(counts)} regions; {expected(name)}.")
    return rows


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
