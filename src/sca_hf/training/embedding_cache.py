"""Image embeddings kept on disk, so that a frozen image encoder runs once per image and not once per epoch.

An entry is one safetensors file, named by what it was made of: below a folder named by the encoder's weights and the
geometry it saw, the hash of the image. So nothing is ever served to another encoder, size or normalization, equal
images share an entry, and processes may fill one cache at once: each writes a file of its own and renames it. What is
cut or damaged does not match its checksum, counts as missing and is made again.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from transformers.utils import logging

from ..data.loading import leave_undecoded
from ..data.region import RegionRecordError, record_image
from ..files import read_json, write_new, write_whole
from ..modeling.families_sca import family_of
from ..run_identity import versions, weights_digest


# What the library adds to a saved configuration and no result depends on.
_VOLATILE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "auto_map"}


class EmbeddingCacheError(RuntimeError):
    """Embeddings that would not be those of the images or of the encoder; the message says what to change."""


class EmbeddingCache:
    """Embeddings (C, h, w) float16 of one frozen image encoder behind one image processor.

    Args:
        folder: The folder, which encoders and data sets may share; 2 MB per image for a SAM of 1024 pixels.
        model: A `ScaForConditionalGeneration` whose image encoder is not trained.
        processor: The model's `ScaProcessor`; images are resized and normalized as it does.
        mask_loss_weight: The weight of the mask loss. Above 0, here or in the model's configuration, masks are trained
            too; those of a SAM-HQ take features that are not kept.
    """

    def __init__(self, folder: str | Path, model: Any, processor: Any, mask_loss_weight: float = 0.0) -> None:
        family, frame = family_of(model.config.sam_config), model.config.image_frame
        if (mask_loss_weight or model.config.mask_loss_weight) and family.extra_maps:
            raise EmbeddingCacheError(
                f"{family.title} also needs other features for its masks, which the embedding cache does not keep: "
                "train without the mask loss, or without the cache."
            )
        look = model.second_look
        looks = look is not None and look.net.fuse.weight.requires_grad
        if model.detail_encoder is not None or model.mixer.reads_features or looks:
            raise EmbeddingCacheError(
                "the embedding cache keeps only SAM's embeddings, but a detail encoder needs the pixels, as does a "
                "second look, and a mixer that reads class scores or features needs those: train without the cache."
            )
        self._model, self._processor = model, processor
        self._seen: list[tuple[int, int]] = []
        self.shape = (frame.width, frame.grid, frame.grid)
        self._fingerprint = self._checked_fingerprint()
        vision = _lasting(model.config.sam_config.vision_config)
        about = {"encoder": self._fingerprint, "vision_config": vision, "images": _geometry(processor)}
        about["versions"] = versions()
        text = json.dumps(about, indent=1, sort_keys=True, default=str)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "about.json").exists():
            write_whole(self.folder / "about.json", text.encode())

    def __getstate__(self) -> dict[str, Any]:
        """Processes that only read need no model."""
        return {**self.__dict__, "_model": None, "_seen": []}

    def key(self, record: Mapping[str, Any]) -> str:
        """Names the image of a record by its file's bytes and size, or by its pixels where there is no file."""
        image = record["image"]
        if isinstance(image, Mapping):
            image = image["path"] if image.get("bytes") is None else image["bytes"]
        digest = hashlib.sha256(f"{record['width']} x {record['height']} ".encode())
        if isinstance(image, (bytes, str, Path)):
            try:
                digest.update(image if isinstance(image, bytes) else Path(image).read_bytes())
            except OSError as error:
                raise RegionRecordError(f"image {record.get('image_id', '?')}: {error}") from error
        else:
            digest.update(b"pixels " + record_image(record).tobytes())
        return digest.hexdigest()

    def read(self, key: str) -> torch.Tensor | None:
        """Returns an embedding (C, h, w) float16, or None where there is none that is whole."""
        try:
            entry = load(self._path(key).read_bytes())
            embedding, checksum = entry["embedding"], int(entry["checksum"][0])
        except (FileNotFoundError, SafetensorError, KeyError, IndexError, ValueError):
            return None
        whole = embedding.shape == self.shape and embedding.dtype == np.float16
        # The array lies in the bytes of the file, which cannot be written to.
        return torch.from_numpy(embedding.copy()) if whole and checksum == self._checksum(key, embedding) else None

    def batch_size(self, wanted: int | None = None) -> int:
        """Returns how many images the encoder takes at once, as rounding depends on it: what the first filling took.

        Args:
            wanted: The number for a cache that was not filled yet; None: entries are made one by one in such a one.
        """
        file = self.folder / "batch_size.json"
        if wanted is not None:
            write_new(file, str(wanted))
        return int(read_json(file)) if file.exists() else 1

    def write(self, key: str, embedding: torch.Tensor) -> None:
        """Stores an embedding (C, h, w), which all processes see whole or not at all."""
        values = embedding.detach().to("cpu", torch.float16).contiguous().numpy()
        if values.shape != self.shape or not np.isfinite(values).all():
            raise EmbeddingCacheError(
                f"the embedding of an image has shape {values.shape} and reaches {np.abs(values).max()}, expected "
                f"finite float16 of {self.shape}: this encoder cannot be cached in half precision."
            )
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, self._entry(key, values))

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Runs the encoder as it is in evaluation; (B, 3, H, W) to (B, C, h, w) float16 on the CPU."""
        if self._model is None:
            raise EmbeddingCacheError(
                f"an embedding in {self.folder} is missing or damaged, and this process is read-only: fill the cache "
                "before training (CachedRecords.fill)."
            )
        if self._checked_fingerprint() != self._fingerprint:
            raise EmbeddingCacheError(
                "the image encoder has changed since its embedding cache was opened: open another EmbeddingCache, "
                "after the model is loaded and cast."
            )
        encoder = self._model.sam.vision_encoder
        training = encoder.training
        device = next(encoder.parameters()).device
        try:
            encoder.eval()
            with torch.no_grad():
                encoding = self._model.encode_images(pixel_values.to(device))
        finally:
            encoder.train(training)
        return encoding.image_embeddings.to("cpu", torch.float16)

    def pixels(self, record: Mapping[str, Any]) -> torch.Tensor:
        """Returns what the encoder takes of a record's image, (3, H, W)."""
        return self._processor.image_processor(record_image(record), return_tensors="pt")["pixel_values"][0]

    def check_frozen(self) -> None:
        """Refuses an encoder that is trained."""
        encoder = self._model.sam.vision_encoder if self._model is not None else None
        if encoder is not None and any(parameter.requires_grad for parameter in encoder.parameters()):
            raise EmbeddingCacheError(
                "the image encoder is trained, so its embeddings change with every step: freeze it, or train without "
                "the embedding cache."
            )

    def _checked_fingerprint(self) -> str:
        self.check_frozen()
        parameters = list(_encoder_weights(self._model.sam).values())
        if any(hasattr(parameter, "to_local") for parameter in parameters):
            raise EmbeddingCacheError("the image encoder is sharded: fill its embedding cache before training.")
        # Hashing takes seconds on a large encoder; numbers do not change unnoticed by their version or address.
        seen = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        if seen != self._seen:
            self._seen, self._last = seen, weights_digest(_encoder_weights(self._model.sam))
        return self._last

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _entry(self, key: str, values: np.ndarray) -> bytes:
        return save({"embedding": values, "checksum": np.array([self._checksum(key, values)], np.int64)})

    def _checksum(self, key: str, values: np.ndarray) -> int:
        # Begun with the entry's name, so that a file that was moved is not taken for another.
        return zlib.crc32(values.data, zlib.crc32(f"{self.folder.name}/{key}".encode()))


class CachedRecords(torch.utils.data.Dataset):
    """Region records by index, with `image_embedding` (C, h, w) float16 from a cache in place of their `image`.

    Embeddings that are not there yet are made when asked for; `fill` makes them ahead, in batches. Augmentation that
    changes the image is refused: it would need another embedding each time.
    """

    def __init__(self, dataset: Any, cache: EmbeddingCache) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise EmbeddingCacheError(
                f"the embedding cache needs a data set with a length and an index, got a {type(dataset).__name__}: a "
                "streamed one is trained without it."
            )
        for wrapper in _wrappers(dataset):
            refuse_augmentation(getattr(wrapper, "augmentation", None))
        self.dataset, self.cache = dataset, cache
        self._rows, self._images = _without_images(dataset), _undecoded(dataset)
        self._keys: list[str | None] = [None] * len(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        key = self._keys[index]
        if key is None:
            key = self._keys[index] = self.cache.key(self._images[index])
        self.cache.check_frozen()
        embedding = self.cache.read(key)
        if embedding is None:
            embedding = self._make({key: self.cache.pixels(self._images[index])}, self.cache.batch_size())[0]
        record = {name: value for name, value in self._rows[index].items() if name != "image"}
        return {**record, "image_embedding": embedding}

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to what lies below."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def fill(self, batch_size: int = 8, num_workers: int = 0, progress: bool = True) -> int:
        """Makes the embeddings that are missing and returns how many; what is there is skipped, so it can be resumed.

        Several processes of one run divide the images among them.

        Args:
            batch_size: How many images the encoder takes at once; a cache that was begun with another number keeps it.
            num_workers: How many processes open and resize images meanwhile.
            progress: Whether to show a progress bar.
        """
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several else (0, 1)
        share = range(rank, len(self), world)
        batch_size = self.cache.batch_size(batch_size)
        pending = _Pending(self._images, self.cache, share)
        loader = torch.utils.data.DataLoader(pending, batch_size, num_workers=num_workers, collate_fn=list)
        made = 0
        with logging.tqdm(total=len(share), desc="image embeddings", disable=not progress) as bar:
            for batch in loader:
                for index, key, _ in batch:
                    self._keys[index] = key
                made += len(self._make({key: pixels for _, key, pixels in batch if pixels is not None}, batch_size))
                bar.update(len(batch))
        if several:
            torch.distributed.barrier()
        return made

    def _make(self, missing: Mapping[str, torch.Tensor], batch_size: int) -> list[torch.Tensor]:
        if not missing:
            return []
        pixels = torch.stack([*missing.values()])
        # Rounding depends on the size of a batch: always the same, so that what is made later ends with the same.
        filler = pixels[:1].expand(batch_size - len(pixels), -1, -1, -1)
        made = list(self.cache.encode(torch.cat([pixels, filler]))[: len(missing)])
        for key, embedding in zip(missing, made, strict=True):
            self.cache.write(key, embedding)
        return made


class _Pending(torch.utils.data.Dataset):
    """The images of a data set by their keys, with pixels where an embedding is missing."""

    def __init__(self, images: Any, cache: EmbeddingCache, share: range) -> None:
        self.images, self.cache, self.share = images, cache, share

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, item: int) -> tuple[int, str, torch.Tensor | None]:
        index = self.share[item]
        record = self.images[index]
        key = self.cache.key(record)
        return index, key, None if self.cache.read(key) is not None else self.cache.pixels(record)


def refuse_augmentation(augmentation: Any) -> None:
    """Raises where an augmentation may change an image; one that does not says so by `keeps_image = True`."""
    if augmentation is not None and not getattr(augmentation, "keeps_image", False):
        raise EmbeddingCacheError(
            f"the augmentation {augmentation!r} changes images, but the embedding cache needs unchanged ones: train "
            "without the augmentation, or without the cache."
        )


def _encoder_weights(sam: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What image embeddings depend on: the weights of the encoder, and the embedding that a tracker adds."""
    beside = {"no_memory_embedding": sam.no_memory_embedding} if hasattr(sam, "no_memory_embedding") else {}
    return {**sam.vision_encoder.state_dict(keep_vars=True), **beside}


def _lasting(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _VOLATILE}


def _geometry(processor: Any) -> dict[str, Any]:
    """What is done to an image before the encoder sees it; backends differ in how they resize."""
    images = processor.image_processor
    kept = {name: value for name, value in images.to_dict().items() if name.split("_")[0] not in ("processor", "auto")}
    return {**kept, "class": type(images).__name__}


def _wrappers(dataset: Any) -> Iterator[Any]:
    while dataset is not None:
        yield dataset
        dataset = getattr(dataset, "dataset", None)


def _without_images(dataset: Any) -> Any:
    """The rows of a data set; those of `datasets` would open each image."""
    columns = getattr(dataset, "column_names", None)
    return dataset.remove_columns(["image"]) if columns and "image" in columns else dataset


def _undecoded(dataset: Any) -> Any:
    """The same rows with the images as files, where `datasets` would open them."""
    columns = getattr(dataset, "features", None) or ()
    if "image" not in columns:
        return dataset
    kept = dataset.select_columns([name for name in ("image", "image_id", "width", "height") if name in columns])
    return leave_undecoded(kept)
