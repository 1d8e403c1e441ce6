"""What a caller may ask for, and how what is refused is said."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..processing.images_sca import as_images
from ..prompt_arguments import RegionPrompt


# What people have; a decoder that nobody needs is a way in that nobody watches.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class RequestError(ValueError):
    """Something that a caller asked for and will not get; `status` is that of HTTP."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """The most that one request may take.

    Attributes:
        file_bytes: of a picture's file.
        pixels: of the picture.
        regions: in one request.
        mask_pixels: of all mask prompts of one request.
        points: in one region.
        grid: points along each side in anything mode.
        new_tokens, beams: of a caption.
        waiting: requests that wait at once; more are told to come back.
    """

    file_bytes: int = 16 << 20
    pixels: int = 24_000_000
    regions: int = 128
    mask_pixels: int = 256_000_000
    points: int = 64
    grid: int = 32
    new_tokens: int = 64
    beams: int = 8
    waiting: int = 64

    def open_image(self, data: bytes) -> Image.Image:
        """Decodes a picture, upright and RGB, after a look at its head."""
        if not data:
            raise RequestError("The picture is an empty file.")
        if len(data) > self.file_bytes:
            raise RequestError(f"The picture has {len(data)} bytes; at most {self.file_bytes} are taken.", 413)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as head:
                width, height = head.size
        except Image.DecompressionBombError:
            width, height = math.inf, 1  # type: ignore[assignment]
        # Decoders raise whatever they like on a damaged file.
        except Exception:  # noqa: BLE001
            raise RequestError(
                f"This is no picture that can be read; give one of {', '.join(FORMATS)}.", 415
            ) from None
        if width * height > self.pixels:
            size = "" if width == math.inf else f" of {width} x {height} pixels"
            raise RequestError(f"The picture{size} is too large; at most {self.pixels} pixels are taken.", 413)
        try:
            return as_images(data)[0]
        except (ValueError, TypeError, OSError):
            raise RequestError("The picture's file is damaged and cannot be read to its end.", 415) from None

    def check_regions(self, regions: Sequence[RegionPrompt]) -> None:
        """Raises where there are too many, or none."""
        if not regions:
            raise RequestError("Ask for at least one region.")
        if len(regions) > self.regions:
            raise RequestError(f"{len(regions)} regions are too many; at most {self.regions} are taken at once.", 413)
        if sum(region.mask.size for region in regions if region.mask is not None) > self.mask_pixels:
            raise RequestError(f"The masks are too many for their size; at most {self.mask_pixels} pixels.", 413)
        for number, region in enumerate(regions, 1):
            if len(region.points) > self.points:
                raise RequestError(
                    f"Region {number} has {len(region.points)} points; at most {self.points} are taken."
                )

    def check_generation(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `generate` that were asked for; raises where they ask for too much.

        Args:
            options: `num_beams`, `max_new_tokens`, `do_sample`, `temperature`, `top_p`; None stands for the default.
        """
        known = {name: value for name, value in options.items() if value is not None}
        bounds: dict[str, tuple[float, float]] = {
            "num_beams": (1, self.beams),
            "max_new_tokens": (1, self.new_tokens),
            "temperature": (0.05, 5.0),
            "top_p": (0.01, 1.0),
        }
        if unknown := sorted(set(known) - set(bounds) - {"do_sample"}):
            raise RequestError(f"Unknown option {unknown[0]!r}; known are {', '.join(bounds)} and do_sample.")
        for name, (least, most) in bounds.items():
            if name not in known:
                continue
            value = known[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise RequestError(f"{name} is {value!r}, expected a number from {least} to {most}.")
            if name in ("num_beams", "max_new_tokens"):
                if value != int(value):
                    raise RequestError(f"{name} is {value}, expected a whole number.")
                known[name] = int(value)
        if known.get("do_sample") not in (None, True, False):
            raise RequestError(f"do_sample is {known['do_sample']!r}, expected true or false.")
        if not known.get("do_sample"):
            known.pop("temperature", None), known.pop("top_p", None)
        return known
