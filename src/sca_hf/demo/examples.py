"""The pictures that the page offers, from outside the training data of the bundled models."""

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


_SCIKIT_IMAGE = "https://github.com/scikit-image/scikit-image"
EXAMPLES = (
    Example("coffee.jpg", "Coffee", "Rachel Michetti", "CC0", _SCIKIT_IMAGE),
    Example("cat.jpg", "Cat", "Stéfan van der Walt", "CC0", _SCIKIT_IMAGE),
    Example("astronaut.jpg", "Astronaut", "NASA", "public domain", _SCIKIT_IMAGE),
    Example("cells.jpg", "Blood cells", "shenggan", "MIT", "https://github.com/Shenggan/BCCD_Dataset"),
)
