"""One engine for all callers: models loaded once, images encoded once, regions of several requests in one call."""

import base64
import binascii
import hashlib
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..captioning import load
from ..model_names import DEFAULT_MODEL, check_repository
from ..modeling.generation_sca import DEFAULT_NEW_TOKENS
from ..modeling.segmentation_sca import ImageEncoding
from ..processing.anything_sca import Progress, caption_anything, encode_image
from ..processing.captions_sca import asked_task, chosen_task
from ..processing.mask_generation_sca import MASK_OUTPUTS
from ..processing.masks_sca import encode_rle
from ..processing.region_prompts_sca import RegionPrompt, processor_arguments
from .images import StoredImage
from .limits import ClientLeftError, Limits, RequestError, client_left


# Regions that requests share a call for, and how long the first of them waits for others.
_BATCH_REGIONS, _BATCH_SECONDS = 32, 0.004
# Regions of one request that are answered before others have their turn: some tenths of a second for a small model.
_TURN_REGIONS = {"cpu": 16}
# Pixels of masks, three to a region, that are unpacked at once.
_MASK_PIXELS = 1 << 25
# Of all that may wait, one in so many may wait for anything mode: each holds a thread of the server meanwhile.
_ANYTHING_SHARE = 8


@dataclass(eq=False)
class _Job:
    """Regions of one image that wait for the model."""

    model: str
    image: StoredImage
    regions: Sequence[RegionPrompt]
    task: str
    generation: dict[str, Any]
    on_tokens: Callable[[list[str]], None] | None
    at_once: int
    result: Future[list[dict[str, Any]]] = field(default_factory=Future)
    records: list[dict[str, Any]] = field(default_factory=list)
    left: threading.Event | None = field(default_factory=client_left.get)

    @property
    def turn(self) -> Sequence[RegionPrompt]:
        """The regions that are next; captions that are streamed grow together."""
        start = len(self.records)
        return self.regions if self.on_tokens else self.regions[start : start + self.at_once]

    @property
    def is_left(self) -> bool:
        """Whether its client has left."""
        return self.left is not None and self.left.is_set()

    def joins(self, other: "_Job") -> bool:
        """Whether one call can answer both."""
        alone = self.on_tokens or other.on_tokens or self.generation.get("do_sample")
        return not alone and (self.model, self.generation) == (other.model, other.generation)


class Engine:
    """Loads models on first use and answers from threads of its own.

    Args:
        models: names that callers may use; a folder is known to callers by its last part only.
        device: None takes CUDA where it is present.
        limits: the most that a request may take.
        cached_images: number of encodings that are kept.
        loaded_models: number of models that are kept loaded.
        dtype: precision of the weights, for instance "bfloat16"; None: as saved.
        revision: branch, tag or commit of the one repository among the models.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        device: str | None = None,
        limits: Limits | None = None,
        cached_images: int = 64,
        loaded_models: int = 2,
        dtype: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.limits, self.device = limits or Limits(), device
        self._folders: dict[str, str] = {}
        for name in models or (DEFAULT_MODEL,):
            source = check_repository(name)
            known = Path(name).name if Path(source).is_dir() else name
            if known in self._folders:
                raise ValueError(f"two models have the name {known}.")
            self._folders[known] = source
        remote = [name for name, source in self._folders.items() if not Path(source).is_dir()]
        if revision is not None and len(remote) != 1:
            raise ValueError(
                f"the revision {revision} applies to one repository, but {len(remote)} of the models are repositories."
            )
        self._loading_options = {name: (dtype, revision if name in remote else None) for name in self._folders}
        self._cached_images, self._loaded_models = cached_images, loaded_models
        self._models: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self._encodings: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock, self._loading, self._encoding = threading.Lock(), threading.Lock(), threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._large: deque[_Job] = deque()
        self._anything, self._decoding = threading.BoundedSemaphore(1), threading.BoundedSemaphore(2)
        self._held: WeakSet[StoredImage] = WeakSet()
        self._anything_waiting = 0
        self.counts = dict.fromkeys(("requests", "regions", "calls", "encodings", "refused", "seconds"), 0.0)
        threading.Thread(target=self._work, name="sca-engine", daemon=True).start()

    @property
    def models(self) -> list[str]:
        """Names of the models that callers may use; the first is the default."""
        return list(self._folders)

    def model(self, name: str | None = None) -> tuple[Any, Any]:
        """A model and its processor, loaded now if they are not yet."""
        name = self.known(name)
        with self._loading:
            if name not in self._models:
                self._models[name] = load(self._folders[name], self.device, *self._loading_options[name])
                while len(self._models) > self._loaded_models:
                    self._models.popitem(last=False)
            self._models.move_to_end(name)
            return self._models[name]

    def known(self, name: str | None) -> str:
        """Returns the name of a model if callers may use it; None stands for the first."""
        if name is None:
            return self.models[0]
        if name not in self._folders:
            raise RequestError(f"There is no model {name[:80]!r} here; the models are {', '.join(self.models)}.", 404)
        return name

    def describe(self, name: str | None = None) -> dict[str, Any]:
        """Describes a model: its parts, size, tasks and settings of anything mode."""
        name = self.known(name)
        model, processor = self.model(name)
        text = model.config.text_config
        return {
            "name": name,
            "language_model": getattr(text, "_name_or_path", "") or text.model_type,
            "image_encoder": model.config.sam_config.model_type,
            "image_size": model.config.image_frame.side,
            "parameters": model.num_parameters(),
            "tasks": processor.tasks,
            "max_new_tokens": min(self.limits.new_tokens, model.longest_caption() or self.limits.new_tokens),
            "anything": asdict(processor.anything_settings_for()),
            "scope": model.config.scope or {},
        }

    def model_card(self, name: str) -> str | None:
        """Returns the text of a model's card, None where it has none on this machine."""
        folder = Path(self._folders[self.known(name)])
        try:
            return (folder / "README.md").read_text(encoding="utf-8") if folder.is_dir() else None
        except (OSError, UnicodeDecodeError):
            return None

    def open_image(self, data: bytes) -> StoredImage:
        """Decodes a picture within the limits, two at a time, as long as those that are held leave room for it."""
        with self._decoding:
            if sum(image.pixels for image in list(self._held)) > 2 * self.limits.kept_pixels:
                raise self._busy()
            image = StoredImage(self.limits.open_image(data), hashlib.sha256(data).hexdigest())
            self._held.add(image)
            return image

    def open_base64(self, text: str) -> StoredImage:
        """Decodes a picture from base64 or a data URL."""
        try:
            data = base64.b64decode(text.rpartition("base64,")[2], validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("The picture is not base64.") from None
        return self.open_image(data)

    def encode(self, image: StoredImage, model: str | None = None) -> Any:
        """Returns an image's encoding, from the cache if it holds it."""
        name = self.known(model)
        key = (name, image.key)
        # One after the other: whoever asks for what is being encoded waits for it, rather than doing it again.
        with self._encoding:
            if key not in self._encodings:
                self._encodings[key] = encode_image(*self.model(name), image.picture)
                self._count(encodings=1)
                while len(self._encodings) > self._cached_images:
                    self._encodings.popitem(last=False)
            self._encodings.move_to_end(key)
            return self._encodings[key]

    def encode_soon(self, image: StoredImage, model: str | None = None) -> None:
        """Encodes an image in the background, so that the first request for it is answered quickly."""
        threading.Thread(target=self.encode, args=(image, self.known(model)), daemon=True).start()

    def submit(
        self,
        image: StoredImage,
        regions: Sequence[RegionPrompt],
        model: str | None = None,
        task: str | None = None,
        generation: dict[str, Any] | None = None,
        length: str | int | None = None,
        language: str | None = None,
        on_tokens: Callable[[list[str]], None] | None = None,
    ) -> Future[list[dict[str, Any]]]:
        """Queues regions for masks and captions.

        Args:
            regions: at least one, as [`Limits.read_regions`] gives them.
            task: a task of the model; None takes its default.
            generation: see [`Limits.check_generation`].
            length: of the captions, as the processor takes it; None is the model's usual one.
            language: of the captions, a tag such as `de`; None is the model's usual one.
            on_tokens: called with the captions so far, after every token; not with beams.

        Returns:
            A future list with one record per region: `caption`, `score`, `iou`, `box` (xyxy), `mask` (COCO RLE) of
            the best mask, all `masks` with the same, and the keys that came with its prompt.
        """
        name = self.known(model)
        options = self._check_generation(name, generation, len(regions))
        if on_tokens and options.get("num_beams", 1) > 1:
            raise RequestError("Beam search cannot be streamed: captions change until the end.")
        loaded, processor = self.model(name)
        try:  # here, so that an error reaches the one caller who made it, not all who share the call
            processor(original_sizes=[image.size], task=task, **processor_arguments([regions]))
            task = asked_task(chosen_task(None, task, processor.tasks, 1), processor.tasks, length, language)
        except (ValueError, TypeError) as error:
            raise RequestError(_sentence(error)) from None
        if self._jobs.qsize() + len(self._large) >= self.limits.waiting:
            raise self._busy()
        at_once = _TURN_REGIONS.get(loaded.device.type, _BATCH_REGIONS)
        job = _Job(name, image, regions, task, options, on_tokens, at_once)
        self._jobs.put(job)
        return job.result

    def _check_generation(self, name: str, generation: dict[str, Any] | None, regions: int = 1) -> dict[str, Any]:
        options, model = self.limits.check_generation(generation or {}), self.model(name)[0]
        tokens = options.get("max_new_tokens")
        try:
            model.check_new_tokens(tokens)
        except ValueError as error:
            raise RequestError(_sentence(error)) from None
        defaults = model.generation_config
        beams = options.get("num_beams") or defaults.num_beams or 1
        self.limits.check_work(regions, beams, tokens or defaults.max_new_tokens or DEFAULT_NEW_TOKENS)
        return options

    def anything(
        self,
        image: StoredImage,
        settings: dict[str, Any] | None = None,
        model: str | None = None,
        generation: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Captions everything in an image, see `caption_anything`; one image at a time, other requests wait.

        It ends at the next batch of masks or the next token where its client leaves, or `progress` raises an error.
        """
        name = self.known(model)
        options = self._check_generation(name, generation)
        loaded, processor = self.model(name)
        try:
            chosen = processor.anything_settings_for(settings)
        except (ValueError, TypeError) as error:
            raise RequestError(_sentence(error)) from None
        self.limits.check_settings(chosen)
        if chosen.task is not None and chosen.task not in processor.tasks:
            raise RequestError(f"There is no task {chosen.task!r}; the tasks are {', '.join(processor.tasks)}.")
        try:
            task = chosen_task(None, chosen.task, processor.tasks, 1)
            asked_task(task, processor.tasks, chosen.length, chosen.language)
        except ValueError as error:
            raise RequestError(_sentence(error)) from None
        with self._lock:
            full = self._anything_waiting >= self.limits.waiting // _ANYTHING_SHARE
            self._anything_waiting += not full
        if full:
            raise self._busy()
        left = client_left.get()

        def report(step: str, done: int, total: int) -> None:
            if left is not None and left.is_set():
                raise ClientLeftError
            if progress is not None:
                progress(step, done, total)

        options["stopping_criteria"] = StoppingCriteriaList([_Watch(lambda _: report("captions", 0, 0))])
        try:
            while not self._anything.acquire(timeout=0.2):
                report("encoding", 0, 0)
            try:
                encoded = self.encode(image, name)
                started = time.perf_counter()
                records = caption_anything(
                    loaded, processor, image.picture, chosen, encoded=encoded, progress=report, **options
                )
                spent = time.perf_counter() - started
                self._count(requests=1, regions=len(records), calls=1, seconds=spent)
                return records
            finally:
                self._anything.release()
        finally:
            with self._lock:
                self._anything_waiting -= 1

    def waiting(self) -> int:
        """Returns the number of requests that wait."""
        return self._jobs.qsize() + len(self._large) + self._anything_waiting

    def close(self) -> None:
        """Ends the engine's thread; requests that wait are still answered."""
        self._jobs.put(None)

    def _busy(self) -> RequestError:
        self._count(refused=1)
        return RequestError("Too many requests are waiting; please try again in a moment.", 429)

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                self.counts[name] += value

    def _work(self) -> None:
        """Answers small requests, several in a call, and after each call the next regions of a large one."""
        kept: list[_Job] = []
        ended = False
        while not ended or self._large or kept:
            kept, ended = self._work_once(kept, ended)

    def _work_once(self, jobs: list[_Job], ended: bool) -> tuple[list[_Job], bool]:
        """Answers jobs with others that can share their call; returns one that cannot, and whether it was the end."""
        kept: list[_Job] = []
        deadline = time.monotonic() + _BATCH_SECONDS
        while not (ended or kept) and sum(len(job.turn) for job in jobs) < _BATCH_REGIONS:
            left = max(0.0, deadline - time.monotonic()) if jobs else 0.0 if self._large else None
            try:
                following = self._jobs.get(timeout=left)
            except queue.Empty:
                break
            if following is None:
                ended = True
            elif len(following.turn) < len(following.regions):
                self._large.append(following)
            elif jobs and not jobs[0].joins(following):
                kept = [following]
            else:
                deadline = deadline if jobs else time.monotonic() + _BATCH_SECONDS
                jobs.append(following)
        self._answer(jobs)
        self._answer([job for job in self._large if job.is_left])
        self._large = deque(job for job in self._large if not job.result.done())
        if self._large:
            self._answer([self._large.popleft()])
        return kept, ended

    def _answer(self, jobs: list[_Job]) -> None:
        """Answers the next regions of jobs."""
        started = time.perf_counter()
        for job in (gone := [job for job in jobs if job.is_left]):
            job.result.set_exception(ClientLeftError())
        if not (jobs := [job for job in jobs if job not in gone]):
            return
        try:
            results = self._run(jobs)
        except Exception as error:  # noqa: BLE001, it belongs to the callers, and the thread must live on
            for job in jobs:
                job.result.set_exception(error)
            return
        for job, records in zip(jobs, results, strict=True):
            job.records += records
        ended = [job for job in jobs if len(job.records) == len(job.regions)]
        self._large.extend(job for job in jobs if job not in ended)
        spent = time.perf_counter() - started
        self._count(requests=len(ended), regions=sum(map(len, results)), calls=1, seconds=spent)
        for job in ended:
            job.result.set_result(job.records)

    @torch.no_grad()
    def _run(self, jobs: list[_Job]) -> list[list[dict[str, Any]]]:
        name, generation = jobs[0].model, dict(jobs[0].generation)
        model, processor = self.model(name)
        encoded = []
        for job in jobs:
            _check_clients(jobs)
            encoded.append(self.encode(job.image, name))
        images = ImageEncoding.cat([encoding for encoding, _ in encoded])
        sizes = [job.image.size for job in jobs]
        prompts = processor_arguments([job.turn for job in jobs])
        inputs = processor(original_sizes=sizes, task=[job.task for job in jobs], **prompts).to(model.device)
        tell = jobs[0].on_tokens

        def watch(ids: torch.Tensor) -> None:
            _check_clients(jobs)
            if tell is not None:
                tell([text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)])

        generation["stopping_criteria"] = StoppingCriteriaList([_Watch(watch)])
        outputs = model.generate(**inputs, **images.as_inputs(), output_caption_scores=True, **generation)
        texts = processor.batch_decode(outputs)
        sure = outputs.confidences
        sure = [[None] * len(row) for row in texts] if sure is None else sure.tolist()
        return [
            [
                region.with_extra({"caption": caption, "score": score, "confidence": confidence, **masks})
                for region, caption, score, confidence, masks in zip(
                    job.turn,
                    texts[index],
                    outputs.caption_scores[index].tolist(),
                    sure[index],
                    _masks(processor, outputs, index, jobs, encoded[index][1]),
                    strict=False,  # scores have padding
                )
            ]
            for index, job in enumerate(jobs)
        ]


class _Watch(StoppingCriteria):
    """Calls a function with the ids so far after every token; captions end early only where it raises an error."""

    def __init__(self, each: Callable[[torch.Tensor], None]) -> None:
        self.each = each

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.each(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _check_clients(jobs: Sequence[_Job]) -> None:
    """Raises where the clients of all jobs have left."""
    if all(job.is_left for job in jobs):
        raise ClientLeftError


def _masks(
    processor: Any, outputs: Any, index: int, jobs: Sequence[_Job], resized: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Yields the best mask and all masks of the regions of an image, unpacked a few at a time."""
    size, count = jobs[index].image.size, len(jobs[index].turn)
    step = max(1, _MASK_PIXELS // (size[0] * size[1]))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        part = {name: outputs[name][index : index + 1, rows] for name in MASK_OUTPUTS if name in outputs}
        _check_clients(jobs)
        for region in processor.post_process_regions(part, [size], [resized], all_masks=True)[0]:
            masks = [
                {"mask": encode_rle(mask), "iou": iou, "box": box}
                for mask, iou, box in zip(region["mask"], region["iou"], region["box"], strict=True)
            ]
            # A second look stands in front of what it looked at.
            best = masks[0] if "second_masks" in part else max(masks, key=lambda mask: mask["iou"])
            yield {**best, "masks": masks}


def _sentence(error: Exception) -> str:
    """The text of an error as a sentence, without the image number that the caller never gave."""
    text = str(error).replace("image 0, ", "").replace("image 0: ", "").strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
