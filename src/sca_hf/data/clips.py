"""Clips: a video file or a folder of frames, read one at a time; masks of objects through a clip; annotated clips."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..environment import require_extra
from ..files import read_json, replacing, staged
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
        self.rate = 0.0

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


def read_masklets(source: str | Path) -> list[dict[int, Any]]:
    """Reads the masks of objects through a clip.

    Args:
        source: A JSON file, either the records of `sca-hf video --json` or per object a list of COCO RLE with one
            entry per frame, None where it is not seen; or a folder as DAVIS and its kind have it, with a picture per
            frame whose values number the objects, 0 for none.

    Returns:
        Per object its masks by frame number, COCO RLE or (height, width) bool.
    """
    path = Path(source)
    if path.is_dir():
        found: dict[int, dict[int, Any]] = {}
        for number, file in enumerate(FrameFolder(path).files):
            with Image.open(file) as picture:
                if picture.mode not in ("P", "L", "I;16", "I"):
                    raise ValueError(
                        f"{file} is in color ({picture.mode}); a mask per frame numbers the objects, 0 for none."
                    )
                values = np.asarray(picture)
            for value in np.unique(values[values > 0]).tolist():
                found.setdefault(int(value), {})[number] = values == value
        if not found:
            raise ValueError(f"{path} shows no object: every value of its pictures is 0.")
        return [found[value] for value in sorted(found)]
    objects = []
    for number, entry in enumerate(read_json(path, list)):
        masks = entry.get("masks") if isinstance(entry, dict) else entry
        if not isinstance(masks, list):
            raise ValueError(f"{path}: object {number} has no list of masks, one per frame.")
        objects.append({frame: mask for frame, mask in enumerate(masks) if mask is not None})
    return objects


def write_masklets(folder: str | Path, records: Sequence[dict[str, Any]], size: tuple[int, int]) -> None:
    """Writes the masks of objects as DAVIS has them: a picture per frame with the number of the object, from 1.

    Args:
        folder: It is replaced.
        records: Of `caption_video`.
        size: (height, width) of the clip.
    """
    palette = np.random.default_rng(0).integers(64, 256, (256, 3), np.uint8)
    palette[0] = 0
    if len(records) > 255:
        raise ValueError(f"{len(records)} objects; pictures of this form number at most 255.")
    with staged(folder) as part:
        for frame in range(len(records[0]["masks"])):
            values = np.zeros(size, np.uint8)
            for number, record in enumerate(records, 1):
                if record["masks"][frame] is not None:
                    values[decode_rle(record["masks"][frame])] = number
            picture = Image.fromarray(values, "P")
            picture.putpalette(palette.tobytes())
            picture.save(part / f"{frame:05d}.png")


def _pyav(path: Path) -> Any:
    require_extra("video", f"The video {path}", "av")
    import av

    return av
