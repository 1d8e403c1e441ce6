"""Pictures kept for later requests, each under a name that nobody can guess."""

import secrets
import threading
from collections import OrderedDict

from .engine import StoredImage
from .limits import RequestError


class ImageStore:
    """The last pictures that were given, in memory only.

    Args:
        pixels: in all; the picture that was not asked for the longest goes first.
    """

    def __init__(self, pixels: int = 200_000_000) -> None:
        self._pixels, self._held = pixels, 0
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, image: StoredImage) -> str:
        """Keeps a picture; returns its name."""
        name = secrets.token_urlsafe(18)
        with self._lock:
            self._images[name] = image
            self._held += _pixels(image)
            while self._held > self._pixels and len(self._images) > 1:
                self._held -= _pixels(self._images.popitem(last=False)[1])
        return name

    def get(self, name: str) -> StoredImage:
        """A picture that is still kept."""
        with self._lock:
            if name not in self._images:
                raise RequestError("This picture is no longer kept here; please give it again.", 410)
            self._images.move_to_end(name)
            return self._images[name]

    def __len__(self) -> int:
        return len(self._images)


def _pixels(image: StoredImage) -> int:
    return image.picture.width * image.picture.height
