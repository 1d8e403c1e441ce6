"""Which images to caption: files, folders, or the pictures of any data set that we read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.images_sca import as_images


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class ImageItem:
    """One image of a run.

    Attributes:
        name: unique in the run; the path inside its folder, or the id that a data set gives it.
        image: a path, or a region record.
    """

    name: str
    image: Any

    def load(self) -> Image.Image:
        """Opens the picture, upright and RGB; errors are ValueError or OSError and name it."""
        if isinstance(self.image, dict):
            from ..data.region import record_image

            return record_image(self.image)
        return as_images(Path(self.image))[0]

    def boxes(self) -> list[list[float]]:
        """The boxes that a data set has for this image, xyxy."""
        if not isinstance(self.image, dict):
            raise ValueError(f"{self.name} is a file and has no boxes of its own; name a file of boxes.")
        return [list(region["box"]) for region in self.image["regions"]]


def find_images(sources: Sequence[str]) -> list[ImageItem]:
    """Returns the images of files, folders (with all folders inside them) and data specs, each name once.

    Args:
        sources: paths, or data specs as `sca-hf data check` takes them.
    """
    items: dict[str, ImageItem] = {}
    for source in sources:
        for item in _items(source):
            if items.setdefault(item.name, item) is not item:
                raise ValueError(f"two images are called {item.name}; caption their sources one by one.")
    if not items:
        raise ValueError(f"there is no image in {', '.join(sources)}.")
    return list(items.values())


def _items(source: str) -> Iterator[ImageItem]:
    path = Path(source)
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                yield ImageItem(file.relative_to(path).as_posix(), str(file))
    elif path.suffix.lower() in SUFFIXES:
        yield ImageItem(path.name, str(path))
    elif path.suffix in (".yaml", ".yml") or ":" in source:
        yield from _records(source)
    else:
        raise FileNotFoundError(f"{source} is no image, no folder and no data spec (format:option=value,...).")


def _records(spec: str) -> Iterator[ImageItem]:
    from ..data.loading import ReadReport, RecordSource, parse_spec

    options = parse_spec(spec)
    if "format" not in options:
        raise ValueError(f"{spec}: a data spec needs a format.")
    known = {name: options.pop(name) for name in ("on_error", "task", "max_samples") if name in options}
    source = RecordSource(options.pop("format"), options, keep_empty=True, **known)
    report = ReadReport(source=source.name)
    for record in source.records(report):
        yield ImageItem(str(record["image_id"]), record)
    report.log()
