"""Clips: a video file or a folder of frames, read one at a time; masks of objects through a clip; annotated clips."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..environment import require_extra
from ..files import read_json, replacing, staged, to_json, write_whole
from ..processing.masks_sca import decode_rle
from .readers.common import IMAGE_SUFFIXES


# Frames kept of the part of a video that was read last, for a look backward.
_KEPT = 32
_WRITTEN = (".mp4", ".mkv", ".mov")


class FrameFolder:
    """A folder with a picture per frame, in the order of the numbers in their names."""

    def __init__(self, folder: Path) -> None:
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise FileNotFoundError(f"{folder} has no picture; a folder of frames has one per frame.")
        self.files = sorted(files, key=lambda path: [int(x) if x.isdigit() else x for x in _parts(path.stem)])
        self.path, self.rate = folder, 0.0

    @property
    def names(self) -> list[str]:
        """Of the frames, as their files have them."""
        return [file.stem for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, frame: int) -> str:
        return str(self.files[frame])


def _parts(name: str) -> list[str]:
    """Digits and what is between them, by turns, beginning with the latter."""
    return re.split(r"(\d+)", name)


class VideoFile:
    """The frames of a video file, decoded as they are asked for; forward in one pass, backward part by part.

    Args:
        path: The file, in any form that FFmpeg reads.
    """

    def __init__(self, path: Path) -> None:
        av = _pyav(path)
        try:
            self._container = av.open(str(path), options={"protocol_whitelist": "file"})
            self._stream = self._container.streams.video[0]
            times = [packet.pts for packet in self._container.demux(self._stream) if packet.pts is not None]
        except IndexError:
            raise ValueError(f"{path} has no video.") from None
        except av.error.FFmpegError as error:
            raise ValueError(f"{path} cannot be read as a video: {error}.") from None
        if not times:
            raise ValueError(f"{path} has no frames.")
        self.path, self._times = path, sorted(set(times))
        self._number = {time: number for number, time in enumerate(self._times)}
        self.rate = float(self._stream.average_rate or 0)
        limit = Image.MAX_IMAGE_PIXELS or 0
        if limit and self._stream.width * self._stream.height > limit:
            raise ValueError(
                f"{path} has frames of {self._stream.width} x {self._stream.height}, more than {limit} pixels."
            )
        self._kept: dict[int, Image.Image] = {}
        self._decoder: Any = None
        self._next = -1

    @property
    def names(self) -> list[str]:
        """Of the frames: their numbers."""
        return [f"{frame:05d}" for frame in range(len(self))]

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, frame: int) -> Image.Image:
        if not 0 <= frame < len(self):
            raise IndexError(f"{self.path} has {len(self)} frames, not one of number {frame}.")
        if frame in self._kept:
            return self._kept[frame]
        if not 0 <= self._next <= frame:
            self._container.seek(self._times[frame], stream=self._stream)  # to the key frame before it
            self._decoder, self._next = self._container.decode(self._stream), 0
        for decoded in self._decoder:
            number = self._number.get(decoded.pts)
            if number is None:
                continue
            self._next = number + 1
            self._kept[number] = decoded.to_image()
            for old in [old for old in self._kept if not number - _KEPT < old <= number]:
                del self._kept[old]
            if number >= frame:
                break
        if frame not in self._kept:
            raise ValueError(f"{self.path}: frame {frame} cannot be decoded; the file is cut or damaged.")
        return self._kept[frame]


def open_clip(source: str | Path) -> FrameFolder | VideoFile:
    """Opens a folder of frames or a video file.

    Raises:
        FileNotFoundError: There is no such file, or no picture in the folder.
        ValueError: It is not a video.
        ImportError: PyAV, which reads videos, is not installed.
    """
    path = Path(source)
    if path.is_dir():
        return FrameFolder(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no clip {path}; give a video file or a folder of frames.")
    return VideoFile(path)


def write_clip(target: str | Path, frames: Iterable[Image.Image], rate: float = 25.0) -> None:
    """Writes frames as a video, or, where the name has no suffix, as a folder of PNG files.

    Args:
        target: `.mp4`, `.mkv` or `.mov`, or a folder, which is replaced.
        frames: Pictures; all are brought to the size of the first, in even numbers of pixels.
        rate: Frames per second.
    """
    path = Path(target)
    check_clip_name(path)
    if not path.suffix:
        with staged(path) as folder:
            for number, frame in enumerate(frames):
                frame.save(folder / f"{number:06d}.png")
        return
    av = _pyav(path)
    with (
        replacing(path) as draft,
        av.open(str(draft), "w", format={".mkv": "matroska"}.get(path.suffix, path.suffix[1:])) as out,
    ):
        stream = None
        for frame in frames:
            if stream is None:
                stream = out.add_stream("libx264", rate=round(rate) or 25)
                stream.width, stream.height = (side + side % 2 for side in frame.size)
                stream.pix_fmt = "yuv420p"
            picture = Image.new("RGB", (stream.width, stream.height))
            picture.paste(frame if frame.size <= picture.size else frame.resize(picture.size))
            out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        if stream is None:
            raise ValueError(f"{path}: there are no frames to write.")
        out.mux(stream.encode(None))


def check_clip_name(path: Path) -> None:
    """Raises unless a clip can be written under this name."""
    if path.suffix and path.suffix.lower() not in _WRITTEN:
        raise ValueError(f"{path}: the name of a clip must end with {', '.join(_WRITTEN)}, or be that of a folder.")


def read_masklets(source: str | Path, clip: FrameFolder | VideoFile | None = None) -> list[dict[int, Any]]:
    """Reads the masks of objects through a clip.

    Args:
        source: A folder as DAVIS, YouTube-VOS and their kind have it, with a picture per frame, or per some frames,
            whose values number the objects, 0 for none; or a JSON file: the records of `sca-hf video --json`, per
            object a list of COCO RLE with one entry per frame (None where it is not seen), such lists by an
            annotation's id (MeViS, `mask_dict.json`), or the records of VideoRefer.
        clip: Whose masks are wanted: where a folder holds fewer pictures, they are those of the frames of the same
            names, and of a file with several clips its own are taken.

    Returns:
        Per object its masks by frame number, COCO RLE or (height, width) bool.
    """
    path = Path(source)
    if path.is_dir():
        return _numbered_in_pictures(path, clip)
    content = read_json(path)
    if isinstance(content, dict):
        content = _of_mevis(path, content, clip)
    elif isinstance(content, list) and any(isinstance(entry, dict) and "annotation" in entry for entry in content):
        records = [entry for entry in content if clip is None or Path(str(entry.get("video"))).stem == clip.path.stem]
        content = [one for entry in records for one in entry["annotation"]]
        if not content:
            raise ValueError(f"{path} has no masks of {'any clip' if clip is None else clip.path.stem}.")
    objects = []
    for number, entry in enumerate(content if isinstance(content, list) else []):
        masks = entry.get("masks", entry) if isinstance(entry, dict) else entry
        if isinstance(masks, list):
            masks = dict(enumerate(masks))
        if not isinstance(masks, dict) or not all(str(frame).isdigit() for frame in masks):
            raise ValueError(
                f"{path}: object {number} has no list of masks, one per frame, nor masks by frame number."
            )
        known = {int(frame): mask for frame, mask in masks.items() if mask is not None}
        objects.append({frame: mask.get("segmentation", mask) if isinstance(mask, dict) else mask
                        for frame, mask in known.items()})  # fmt: skip
    if not objects:
        raise ValueError(f"{path} has no objects; it must hold their masks, see sca-hf video --help.")
    return objects


def _numbered_in_pictures(path: Path, clip: FrameFolder | VideoFile | None) -> list[dict[int, Any]]:
    pictures = FrameFolder(path)
    frames = list(range(len(pictures)))
    if clip is not None and len(pictures) != len(clip):
        number = {name: frame for frame, name in enumerate(clip.names)}
        if unknown := [name for name in pictures.names if name not in number]:
            raise ValueError(
                f"{path} has {len(pictures)} pictures for the {len(clip)} frames of {clip.path}, and {unknown[0]} is "
                "not the name of a frame."
            )
        frames = [number[name] for name in pictures.names]
    found: dict[int, dict[int, Any]] = {}
    for frame, file in zip(frames, pictures.files, strict=True):
        with Image.open(file) as picture:
            if picture.mode not in ("P", "L", "I;16", "I"):
                raise ValueError(
                    f"{file} is in color ({picture.mode}); a mask per frame numbers the objects, 0 for none."
                )
            values = np.asarray(picture)
        for value in np.unique(values[values > 0]).tolist():
            found.setdefault(int(value), {})[frame] = values == value
    if not found:
        raise ValueError(f"{path} shows no object: every value of its pictures is 0.")
    return [found[value] for value in sorted(found)]


def _of_mevis(path: Path, masks: dict[str, Any], clip: FrameFolder | VideoFile | None) -> list[Any]:
    """Of masks by an annotation's id those of one clip, if the file beside them says which these are."""
    beside = path.with_name("meta_expressions.json")
    if clip is None or not beside.is_file():
        return list(masks.values())
    try:
        expressions = read_json(beside)["videos"][clip.path.stem]["expressions"]
        return [masks[one] for one in dict.fromkeys(str(one) for e in expressions.values() for one in e["anno_id"])]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{beside} and {path} have no masks of {clip.path.stem} ({error}).") from error


def write_masklets(target: str | Path, records: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Writes the masks of objects as DAVIS has them: a picture per frame with the number of the object, from 1.

    Args:
        target: A folder, which is replaced; or a .json file, which gets what MeViS has (`mask_dict.json`).
        records: Of `caption_video`.
        names: Of the frames, for those of the pictures.
    """
    if Path(target).suffix == ".json":
        write_whole(target, to_json({str(number): record["masks"] for number, record in enumerate(records)}, None))
        return
    size = next(mask["size"] for record in records for mask in record["masks"] if mask is not None)
    palette = np.random.default_rng(0).integers(64, 256, (256, 3), np.uint8)
    palette[0] = 0
    if len(records) > 255:
        raise ValueError(f"{len(records)} objects; pictures of this form number at most 255.")
    with staged(target) as part:
        for frame, name in enumerate(names):
            values = np.zeros(size, np.uint8)
            for number, record in enumerate(records, 1):
                if record["masks"][frame] is not None:
                    values[decode_rle(record["masks"][frame])] = number
            picture = Image.fromarray(values, "P")
            picture.putpalette(palette.tobytes())
            picture.save(part / f"{name}.png")


def _pyav(path: Path) -> Any:
    require_extra("video", f"The video {path}", "av")
    import av

    return av
