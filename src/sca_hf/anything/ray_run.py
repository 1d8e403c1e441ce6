"""The same run on a Ray cluster: Ray Data hands images to actors that hold the model; the driver keeps the journal."""

from collections.abc import Callable, Iterator
from typing import Any

from .folder import FolderRun, ImageCaptioner
from .sources import ImageItem


def ray_captions(run: FolderRun, workers: int) -> Callable[[list[ImageItem]], Iterator[dict[str, Any]]]:
    """Returns what `run_folder` takes as `caption`.

    Args:
        run: as in `run_folder`; paths must be readable on all machines.
        workers: actors, each with a copy of the model.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ImportError("Captioning on a Ray cluster needs ray: pip install 'sca-hf[ray]'.") from None

    class Actor:
        def __init__(self) -> None:
            self.captioner = ImageCaptioner(run)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return {"entry": self.captioner(row["item"])}

    def captions(items: list[ImageItem]) -> Iterator[dict[str, Any]]:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False  # ours is the one that counts images
        wants_gpu = run.device is None and ray.cluster_resources().get("GPU", 0) >= workers
        rows = ray.data.from_items(
            [{"item": item} for item in items], override_num_blocks=min(len(items), 4 * workers)
        )
        mapped = rows.map(Actor, concurrency=workers, num_gpus=1 if wants_gpu else 0)
        for row in mapped.iter_rows():
            yield row["entry"]

    return captions
