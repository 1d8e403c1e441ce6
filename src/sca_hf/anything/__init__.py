"""Captioning everything in whole folders of images: what `sca-hf anything` does, without the command line."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports


if TYPE_CHECKING:
    from .folder import FolderResult, FolderRun, run_folder
    from .sources import ImageItem, find_images, read_boxes
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            ".folder": ["FolderResult", "FolderRun", "run_folder"],
            ".sources": ["ImageItem", "find_images", "read_boxes"],
        },
    )


__all__ = [
    "FolderResult",
    "FolderRun",
    "ImageItem",
    "find_images",
    "read_boxes",
    "run_folder",
]
