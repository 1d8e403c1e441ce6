"""Any model of transformers that takes pictures, with or without text, and returns text, in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ...model_names import resolve_model
from ...modeling.configuration_sca import ScaConfig
from ...run_identity import model_identity


DEFAULT_NEW_TOKENS = 20
# What is asked of a model that cannot do without words, where nothing is asked.
_CHAT_QUESTION = "Describe this image in one short phrase."
_TEXTS = {"kosmos-2": "An image of", "florence2": "<CAPTION>", "paligemma": "caption en"}


class ImageTextModel:
    """A model and its processor: `AutoModelForImageTextToText`, of which GIT, BLIP and BLIP-2 are some.

    A picture's answer does not depend on the others: only those whose texts have equally many tokens run together, so
    that none is padded.

    Args:
        model: of the library.
        processor: the model's.
        batch_size: pictures at a time.
        generation: arguments of `generate`; by default at most 20 new tokens, greedy.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        batch_size: int = 64,
        generation: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> None:
        self.model, self.processor, self.batch_size, self.source = model.eval(), processor, batch_size, source
        self.generation = {"max_new_tokens": DEFAULT_NEW_TOKENS, "do_sample": False, "num_beams": 1}
        self.generation |= dict(generation or {})
        self.kind: str = model.config.model_type
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token

    @classmethod
    def load(
        cls,
        source: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        batch_size: int = 64,
        generation: Mapping[str, Any] | None = None,
    ) -> ImageTextModel:
        """Loads a folder or repository, or a bundled model."""
        source = resolve_model(source)
        loaded = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype or torch.float32, trust_remote_code=False
        ).to(device)
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        return cls(loaded, processor, batch_size, generation, model_identity(source))

    @property
    def chats(self) -> bool:
        """Whether it takes questions in turns of a conversation."""
        return bool(getattr(self.processor, "chat_template", None))

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"model": self.source, "dtype": dtype, "batch_size": self.batch_size, "generation": self.generation}

    def answer(
        self, images: Sequence[Image.Image], texts: Sequence[str] | None = None, **inputs: Sequence[Any]
    ) -> list[str]:
        """Returns what the model says of each picture, stripped.

        Args:
            images: RGB, of any size.
            texts: what to ask of each, or the words to continue; None asks nothing, or where a model cannot do
                without words, for a caption.
            inputs: further arguments of the processor, one entry per picture, as Kosmos-2's `bboxes`.
        """
        if texts is None and (default := _CHAT_QUESTION if self.chats else _TEXTS.get(self.kind)):
            texts = [default] * len(images)
        prompts = None if texts is None else [self._prompt(text) for text in texts]
        answers: dict[int, str] = {}
        for rows in self._batches(prompts, len(images)):
            asked = None if prompts is None else [prompts[row] for row in rows]
            more = {name: [values[row] for row in rows] for name, values in inputs.items()}
            answers |= zip(rows, self._generate([images[row] for row in rows], asked, more), strict=True)
        return [answers[row] for row in range(len(images))]

    def _prompt(self, text: str) -> str:
        if not self.chats:
            return text
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return self.processor.apply_chat_template([turn], add_generation_prompt=True)

    def _batches(self, prompts: Sequence[str] | None, count: int) -> list[list[int]]:
        """Returns rows that can run together, in their order."""
        groups: dict[int, list[int]] = {0: list(range(count))} if prompts is None else {}
        for row, prompt in enumerate(prompts or ()):
            groups.setdefault(len(self.processor.tokenizer(prompt)["input_ids"]), []).append(row)
        return [
            group[start : start + self.batch_size]
            for group in groups.values()
            for start in range(0, len(group), self.batch_size)
        ]

    @torch.inference_mode()
    def _generate(self, images: list[Image.Image], prompts: list[str] | None, more: Mapping[str, Any]) -> list[str]:
        inputs = self._inputs(images, prompts, more).to(self.model.device, self.model.dtype)
        if self.kind == ScaConfig.model_type:  # shown a picture and no prompt, ours describes all of it
            outputs = self.model.generate(**inputs, output_masks=False, **self.generation)
            return self.processor.post_process_image_text_to_text(outputs)
        sequences = self.model.generate(**inputs, **self.generation)
        prompt_ids = inputs.get("input_ids")
        if prompt_ids is not None:
            sequences = new_tokens(sequences, prompt_ids, self.kind)
        return [text.strip() for text in self.processor.batch_decode(sequences, skip_special_tokens=True)]

    def _inputs(self, images: list[Image.Image], prompts: list[str] | None, more: Mapping[str, Any]) -> Any:
        if prompts is None:
            return self.processor(images=images, return_tensors="pt", **more)
        if self.kind == "git":
            return self._git_inputs(images, prompts)
        # One list per conversation: models that take several pictures would count them all to the first.
        pictures: list[Any] = [[image] for image in images] if self.chats else images
        # A conversation begins with BOS by its own template.
        special = {"add_special_tokens": False} if self.chats and self._template_has_bos(prompts[0]) else {}
        return self.processor(images=pictures, text=prompts, padding=True, return_tensors="pt", **special, **more)

    def _git_inputs(self, images: list[Image.Image], prompts: list[str]) -> Any:
        """GIT continues words that begin as a text does and do not end."""
        inputs = self.processor(images=images, text=prompts, add_special_tokens=False, return_tensors="pt")
        start = torch.full((len(images), 1), self.processor.tokenizer.cls_token_id)
        inputs["input_ids"] = torch.cat([start, inputs["input_ids"]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return inputs

    def _template_has_bos(self, prompt: str) -> bool:
        bos = self.processor.tokenizer.bos_token
        return bool(bos) and prompt.startswith(bos)


def new_tokens(sequences: torch.Tensor, prompt_ids: torch.Tensor, kind: str) -> torch.Tensor:
    """Returns the ids (rows, T) without the prompt (rows, L), where a model of this kind repeats it before its answer.

    BLIP repeats all but the prompt's last id, its end, and puts another in the place of the first.
    """
    first, length = (1, prompt_ids.shape[1] - 1) if kind == "blip" else (0, prompt_ids.shape[1])
    repeated = torch.equal(sequences[:, first:length], prompt_ids[:, first:length])
    return sequences[:, length:] if repeated else sequences
