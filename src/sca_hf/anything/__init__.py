"""Captioning everything in whole folders of images: what `sca-hf anything` does, without the command line."""

from .folder import FolderResult, FolderRun, run_folder
from .sources import ImageItem, find_images, read_boxes


__all__ = [
    "FolderResult",
    "FolderRun",
    "ImageItem",
    "find_images",
    "read_boxes",
    "run_folder",
]
