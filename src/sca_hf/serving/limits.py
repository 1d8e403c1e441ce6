"""What a caller may ask for, and what is said where it is refused."""

import io
import math
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..processing.anything_settings_sca import AnythingSettings


if TYPE_CHECKING:
    from ..processing.region_prompts_sca import RegionPrompt

# What people have. A decoder that nobody needs is an attack surface that nobody watches.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class RequestError(ValueError):
    """A request that is refused; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


# Set once the client of the request that is being answered has left; worker threads inherit it.
client_left: ContextVar[threading.Event | None] = ContextVar("client_left", default=None)


class ClientLeftError(RequestError):
    """Nobody waits for the rest of the work."""

    def __init__(self) -> None:
        super().__init__("The client has left.", 499)


def limit(default: int, text: str) -> int:
    """Declares a limit with what it is of."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Limits:
    """The most that one request may take.

    What each field is, is its metadata's `help`. Each is compared before its cost arises: with these defaults a
    refusal takes at most 300 MiB and, once the request has arrived, 5 s.
    """

    file_bytes: int = limit(16 << 20, "bytes of a picture's file")
    pixels: int = limit(24_000_000, "pixels per picture")
    side: int = limit(32_768, "pixels of a picture's longer side")
    regions: int = limit(128, "regions per request")
    mask_pixels: int = limit(256_000_000, "total pixels of a request's mask prompts")
    points_per_side: int = limit(32, "points_per_side of anything mode")
    points_per_batch: int = limit(256, "points_per_batch of anything mode")
    crop_n_layers: int = limit(1, "crop_n_layers of anything mode")
    new_tokens: int = limit(64, "tokens per caption")
    beams: int = limit(8, "beams per caption")
    tokens: int = limit(8192, "tokens of all beams of all captions of a request")
    json_values: int = limit(500_000, "numbers, lists and objects in the JSON of a request")
    body_seconds: int = limit(60, "seconds in which a request must arrive")
    waiting: int = limit(64, "waiting requests; further ones get status 429")
    kept_pixels: int = limit(200_000_000, "total pixels of the pictures stored for later requests")

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < (each.name != "crop_n_layers"):
                raise ValueError(f"the limit {each.name} is {getattr(self, each.name)}, expected a number above 0.")

    def open_image(self, data: bytes) -> Image.Image:
        """Decodes a picture, upright and RGB; its header is checked first."""
        from ..processing.images_sca import as_image  # imports torch; the command line lists limits without it

        if not data:
            raise RequestError("The picture file is empty.")
        if len(data) > self.file_bytes:
            raise RequestError(f"The picture has {len(data)} bytes; the limit is {self.file_bytes}.", 413)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as head:
                width, height = head.size
        except Image.DecompressionBombError:
            width, height = math.inf, 1  # type: ignore[assignment]
        # Decoders raise whatever they like on a damaged file.
        except Exception:  # noqa: BLE001
            raise RequestError(
                f"This picture cannot be read; supported formats are {', '.join(FORMATS)}.", 415
            ) from None
        if width * height > self.pixels:
            size = "" if width == math.inf else f" of {width} x {height} pixels"
            raise RequestError(f"The picture{size} is too large; the limit is {self.pixels} pixels.", 413)
        if max(width, height) > self.side:
            raise RequestError(f"The picture of {width} x {height} pixels is too long; the limit is {self.side}.", 413)
        try:
            return as_image(data)
        except (ValueError, TypeError, OSError):
            raise RequestError("The picture file is damaged and cannot be read to the end.", 415) from None

    def read_regions(
        self, values: Any, size: tuple[int, int], shown_size: tuple[int, int] | None = None
    ) -> "list[RegionPrompt]":
        """Reads the regions of a request, see `processing/region_prompts_sca.py`.

        Args:
            values: a list of region objects.
            size: height and width of the picture.
            shown_size: height and width at which a page shows it; masks may be painted at this size too.
        """
        from ..processing.region_prompts_sca import RegionLimitError, read_regions

        try:
            return read_regions(
                values, size, max_regions=self.regions, max_mask_pixels=self.mask_pixels, shown_size=shown_size
            )
        except RegionLimitError as error:
            raise RequestError(str(error), 413) from None
        except ValueError as error:
            raise RequestError(str(error)) from None

    def check_settings(self, settings: AnythingSettings) -> None:
        """Raises where settings of anything mode would take too much time or memory."""
        for name in ("points_per_side", "points_per_batch", "crop_n_layers"):
            if (value := getattr(settings, name)) > (high := getattr(self, name)):
                raise RequestError(f"{name} is {value}; the limit is {high}.")

    def check_work(self, regions: int, beams: int, tokens: int) -> None:
        """Raises where the captions of a request together would take too long; others wait for them."""
        if (work := regions * beams * tokens) > self.tokens:
            raise RequestError(
                f"{regions} regions x {beams} beams x {tokens} tokens are {work}; the limit is {self.tokens}: send "
                "fewer regions at once.",
                413,
            )

    def check_generation(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `generate` that are set; raises where one is above its limit.

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
        for name, (low, high) in bounds.items():
            value = known.get(name, low)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise RequestError(f"{name} is {value!r}, expected a number from {low} to {high}.")
            if name in known and name in ("num_beams", "max_new_tokens"):
                if value != int(value):
                    raise RequestError(f"{name} is {value}, expected a whole number.")
                known[name] = int(value)
        if not isinstance(known.get("do_sample", False), bool):
            raise RequestError(f"do_sample is {known['do_sample']!r}, expected true or false.")
        if not known.get("do_sample"):
            known.pop("temperature", None)
            known.pop("top_p", None)
        return known
