"""Decoded pictures, and those that are kept for later requests."""

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image

from .limits import RequestError


@dataclass(frozen=True, eq=False)
class StoredImage:
    """A decoded picture and the name of its content."""

    picture: Image.Image
    key: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.picture.height, self.picture.width

    @property
    def pixels(self) -> int:
        """How many pixels it has."""
        return self.picture.width * self.picture.height


class ImageStore:
    """Pictures of recent requests, in memory only.

    Args:
        pixels: pixels of all pictures together; above it the least recently used picture is dropped.
    """

    def __init__(self, pixels: int = 200_000_000) -> None:
        self._pixels, self._held = pixels, 0
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, image: StoredImage) -> str:
        """Keeps a picture and returns its name."""
        name = secrets.token_urlsafe(18)
        with self._lock:
            self._images[name] = image
            self._held += image.pixels
            while self._held > self._pixels and len(self._images) > 1:
                self._held -= self._images.popitem(last=False)[1].pixels
        return name

    def get(self, name: str) -> StoredImage:
        """Returns a picture that is still kept."""
        with self._lock:
            if name not in self._images:
                raise RequestError("This picture is no longer stored; please send it again.", 410)
            self._images.move_to_end(name)
            return self._images[name]

    def __len__(self) -> int:
        return len(self._images)
