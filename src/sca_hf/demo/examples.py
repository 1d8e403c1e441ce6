"""The pictures that the page offers: of what the bundled model knows, from outside its training data."""

from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Example:
    """One picture, and whose it is; the texts of the licenses are in `page/examples/NOTICE.md`.

    Attributes:
        file: its name in `page/examples`.
        name: what it shows.
        credit: who made it.
        license: as it is commonly called.
        source: where it comes from, an address.
    """

    file: str
    name: str
    credit: str
    license: str
    source: str

    def read(self) -> bytes:
        """The picture's file."""
        return (resources.files("sca_hf.demo") / "page" / "examples" / self.file).read_bytes()


EXAMPLES = (
    Example(
        "sign.jpg",
        "Road sign",
        "Wang Tianyi",
        "CC BY 4.0",
        "https://universe.roboflow.com/roboflow-100/road-signs-6ih4y",
    ),
    Example(
        "cards.jpg",
        "Playing cards",
        "Evan Juras",
        "Apache 2.0",
        "https://github.com/EdjeElectronics/"
        "TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10",
    ),
    Example("cells.jpg", "Blood cells", "shenggan", "MIT", "https://github.com/Shenggan/BCCD_Dataset"),
    Example(
        "fruit.jpg",
        "Dates and figs",
        "Tony607",
        "MIT",
        "https://github.com/Tony607/mmdetection_instance_segmentation_demo",
    ),
)
