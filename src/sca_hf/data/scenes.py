"""The synthetic data set `scenes`: textured, colored, overlapping shapes with exact masks and free captions.

A scene is a pure function of its seed. The three splits are disjoint ranges of seeds. Captions are written from an
object's attributes, and read back from any text: color, shape and texture are always stated ("plain" when there is no
texture), a size when the object is small or large, and where it stands from its nearest neighbour unless it is large.
Only the wording is free, and whether the neighbour is named.

Frame of reference everywhere in this file: pixels of the rendered image, x to the right, y down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..processing.masks_sca import mask_extent


_Option = TypeVar("_Option")
IMAGE_SIZE = 192
SPLIT_STARTS = {"train": 0, "validation": 10_000_000, "test": 20_000_000}
COLORS = {
    "red": (214, 38, 40),
    "green": (36, 160, 62),
    "blue": (40, 78, 214),
    "yellow": (242, 216, 44),
    "purple": (142, 48, 172),
    "orange": (246, 134, 28),
    "white": (242, 242, 242),
    "black": (26, 26, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
RELATIONS = ("left", "right", "above", "below")

# Half extents in pixels. The gaps between the classes make a size decidable from the picture.
_RADII = {"small": (25.0, 29.0), "medium": (35.0, 41.0), "large": (47.0, 54.0)}
_SIZE_ODDS = (0.34, 0.36, 0.30)
# An outline of half extent 1 differs in area from shape to shape; these factors bring the areas closer.
_SHAPE_SCALE = {"circle": 0.95, "square": 0.85, "triangle": 1.25, "star": 1.2, "ring": 1.0, "cross": 1.05}
MIN_VISIBLE = 0.6
_MAX_TILT = np.deg2rad(20.0)
# Large objects are landmarks and described alone; others also by their nearest neighbour. Where it is not plain which
# neighbour is the nearest, or on which side it lies, the object is left without captions: nobody has to guess.
_CLEAR_RATIO, _CLEAR_ANGLE = 0.88, np.deg2rad(30.0)

CAPTIONS_PER_OBJECT = 3
NAMED_NEIGHBOURS = 0.4
SYNONYMS = {
    "small": ("small", "little"),
    "large": ("large", "big"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
}
PATTERNS = {"striped": "with stripes", "dotted": "with dots", "checkered": "with checks"}
_PLACES = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# word -> (attribute, canonical value), for reading captions
_VOCABULARY = {
    **{word: ("color", word) for word in COLORS},
    **{word: ("shape", word) for word in SHAPES},
    **{word: ("texture", word) for word in TEXTURES},
    **{phrase.split()[-1]: ("texture", texture) for texture, phrase in PATTERNS.items()},
    **{word: ("size" if value in SIZES else "shape", value) for value, words in SYNONYMS.items() for word in words},
}
_RELATION_PATTERN = re.compile(r"\b(?:(left|right) of|(above|over)|(below|under))\b")


@dataclass
class SceneObject:
    """One shape of a scene, with what a caption may say about it.

    `relation` is where the object stands from its nearest neighbour, `reference`; None for a large object, which needs
    none. `describable` is False where that is a matter of opinion.
    """

    color: str
    shape: str
    texture: str
    size: str
    center: tuple[float, float]
    radius: float
    tilt: float
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    point: tuple[float, float] = (0.0, 0.0)
    relation: str | None = None
    reference: SceneObject | None = field(default=None, repr=False, compare=False)
    describable: bool = True
    captions: list[str] = field(default_factory=list)

    @property
    def category(self) -> str:
        """Names the object without its size or place: the target of the recognition task."""
        return f"{self.texture} {self.color} {self.shape}"


@dataclass
class Scene:
    """One rendered picture: `image` (H, W, 3) uint8, `labels` (H, W) uint8 with 0 for the background."""

    seed: int
    image: np.ndarray
    labels: np.ndarray
    objects: list[SceneObject]

    def mask(self, index: int) -> np.ndarray:
        """Returns the visible pixels of an object, (H, W) bool."""
        return self.labels == index + 1

    def to_pil(self) -> Image.Image:
        return Image.fromarray(self.image)

    def to_record(self) -> dict[str, Any]:
        """Returns the region record of the scene (see `region.py`); regions are the describable objects."""
        from ..processing.masks_sca import encode_rle

        regions = [
            {
                "region_id": f"{self.seed}-{index}",
                "box": list(obj.box),
                "mask": encode_rle(self.mask(index)),
                "points": [list(obj.point)],
                "labels": [1],
                "captions": list(obj.captions),
                "category": obj.category,
            }
            for index, obj in enumerate(self.objects)
            if obj.describable
        ]
        height, width = self.labels.shape
        return {
            "image": self.to_pil(),
            "image_id": f"scene-{self.seed}",
            "width": width,
            "height": height,
            "task": "caption",
            "regions": regions,
        }


def scenes(split: str, count: int, start: int = 0) -> Iterator[Scene]:
    """Renders scenes `start` to `start + count` of a split."""
    for index in range(start, start + count):
        yield render_scene(scene_seed(split, index))


def scene_seed(split: str, index: int) -> int:
    """Returns the seed of the scene at `index` of a split."""
    if split not in SPLIT_STARTS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLIT_STARTS)}")
    if not 0 <= index < 10_000_000:
        raise ValueError(f"scene index is {index}, expected 0 to 9,999,999")
    return SPLIT_STARTS[split] + index


def render_scene(seed: int) -> Scene:
    """Draws the scene of a seed."""
    rng = np.random.default_rng(seed)
    image, mean = _draw_background(rng)
    labels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    objects = _place_objects(rng, image, labels, mean)
    for index, obj in enumerate(objects):
        obj.box, obj.point = _locate(labels == index + 1)
    for index, obj in enumerate(objects):
        obj.relation, obj.reference, obj.describable = _find_relation(obj, objects)
        # Words have a generator of their own: another wording leaves the pictures as they are.
        obj.captions = describe(obj, np.random.default_rng((seed, index)))
    return Scene(seed, np.clip(image + 0.5, 0, 255).astype(np.uint8), labels, objects)


def _draw_background(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns a muted background (H, W, 3) float32 and its mean color."""
    gray = rng.uniform(70, 205)
    mean = np.clip(gray + rng.normal(0, 16, 3), 40, 225)
    cells = int(rng.choice([2, 3, 6, 12]))
    noise = rng.normal(0, rng.uniform(4, 16), (cells, cells, 3))
    noise[..., 1:] = 0.4 * noise[..., 1:] + 0.6 * noise[..., :1]
    planes = [Image.fromarray((noise[..., c] + mean[c]).astype(np.float32), "F") for c in range(3)]
    size = (IMAGE_SIZE, IMAGE_SIZE)
    image = np.stack([np.asarray(p.resize(size, Image.Resampling.BICUBIC)) for p in planes], -1)
    grain = rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), np.float32) * np.float32(rng.uniform(0, 7))
    return image + grain, mean


def _place_objects(
    rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, background: np.ndarray
) -> list[SceneObject]:
    """Draws two to five objects, later ones on top; each stays at least 60 % visible."""
    palette = [name for name, rgb in COLORS.items() if np.abs(np.subtract(rgb, background)).sum() > 130]
    wanted = int(rng.integers(3, 6))
    objects: list[SceneObject] = []
    areas: list[int] = []
    for _ in range(8 * wanted):
        if len(objects) == wanted:
            break
        obj = _propose(rng, palette)
        if any((o.color, o.shape) == (obj.color, obj.shape) for o in objects):
            continue
        window, x, y = _window(obj)
        distance = _signed_distance(obj.shape, x, y, obj.radius * _SHAPE_SCALE[obj.shape])
        inside = distance < 0
        covered = np.bincount(labels[window][inside], minlength=len(objects) + 1)[1:]
        visible = np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:] - covered
        if any(v < MIN_VISIBLE * a for v, a in zip(visible, areas, strict=True)):
            continue
        # Where two objects of one color touch, nobody could say where one ends.
        if any(c and o.color == obj.color for c, o in zip(covered, objects, strict=True)):
            continue
        alpha = np.clip(0.5 - distance, 0, 1)[..., None].astype(np.float32)
        image[window] += alpha * (_paint(rng, obj, x, y) - image[window])
        labels[window][inside] = len(objects) + 1
        objects.append(obj)
        areas.append(int(inside.sum()))
    return objects


def _propose(rng: np.random.Generator, palette: list[str]) -> SceneObject:
    size = SIZES[rng.choice(3, p=_SIZE_ODDS)]
    radius = float(rng.uniform(*_RADII[size]))
    reach = radius * 1.05
    center = rng.uniform(reach, IMAGE_SIZE - 1 - reach, 2)
    return SceneObject(
        color=palette[rng.integers(len(palette))],
        shape=SHAPES[rng.integers(len(SHAPES))],
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        size=size,
        center=(float(center[0]), float(center[1])),
        radius=radius,
        tilt=float(rng.uniform(-_MAX_TILT, _MAX_TILT)),
    )


def _window(obj: SceneObject) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Returns the slices around an object and the pixels' coordinates in its own upright frame."""
    reach = obj.radius * 1.35 + 2
    spans = [(max(0, int(c - reach)), min(IMAGE_SIZE, int(c + reach) + 2)) for c in obj.center]
    x = np.arange(*spans[0], dtype=np.float32)[None, :] - np.float32(obj.center[0])
    y = np.arange(*spans[1], dtype=np.float32)[:, None] - np.float32(obj.center[1])
    cos, sin = np.float32(np.cos(obj.tilt)), np.float32(np.sin(obj.tilt))
    return (slice(*spans[1]), slice(*spans[0])), cos * x + sin * y, cos * y - sin * x


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Returns about the distance in pixels to the outline of a shape of half extent `r`, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.7 * r) - 0.3 * r
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - r
    if shape == "cross":
        bar_x = np.maximum(np.abs(x) - r, np.abs(y) - 0.36 * r)
        bar_y = np.maximum(np.abs(y) - r, np.abs(x) - 0.36 * r)
        return np.minimum(bar_x, bar_y)
    if shape == "triangle":
        y = y - 0.2 * r
        return np.maximum(y, 0.866 * np.abs(x) - 0.5 * y) - 0.5 * r
    return _star_distance(x, y, r)


def _star_distance(x: np.ndarray, y: np.ndarray, r: float, points: int = 5, waist: float = 0.46) -> np.ndarray:
    sector = 2 * np.pi / points
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - sector * np.round(angle / sector))
    distance = np.hypot(x, y)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    edge = np.array([waist * np.cos(sector / 2) - 1, waist * np.sin(sector / 2)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (along - r) * np.float32(normal[0]) + across * np.float32(normal[1])


def _paint(rng: np.random.Generator, obj: SceneObject, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the colors (h, w, 3) of an object's surface; x and y are in its own frame."""
    first = np.array(COLORS[obj.color], np.float32) + rng.normal(0, 7, 3).astype(np.float32)
    # A black object needs a lighter second color, a bright one a darker, or its texture cannot be seen.
    bright = first @ np.array([0.30, 0.59, 0.11], np.float32) > 135
    second = first * 0.48 if bright else first * 0.45 + 255 * 0.55
    return np.where(_texture(rng, obj.texture, x, y)[..., None], second, first)


def _texture(rng: np.random.Generator, texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns where the second color shows, (h, w) bool. Periods are at least nine pixels once halved to 96."""
    if texture == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    period = np.float32(rng.uniform(18, 24))
    turn = rng.uniform(0, np.pi) if texture == "striped" else rng.uniform(-0.3, 0.3)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u = (cos * x + sin * y) / period + np.float32(rng.uniform())
    v = (cos * y - sin * x) / period + np.float32(rng.uniform())
    if texture == "striped":
        return u - np.floor(u) < 0.5
    if texture == "dotted":
        return np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5) < 0.31
    return (np.floor(2 * u / 1.15) + np.floor(2 * v / 1.15)) % 2 == 0


def _locate(mask: np.ndarray) -> tuple[tuple[float, float, float, float], tuple[float, float]]:
    """Returns the xyxy box (far edges exclusive) of a mask and its deepest interior pixel (x, y)."""
    left, top, right, bottom = mask_extent(mask)
    depth = interior_distance(mask[top:bottom, left:right])
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return (float(left), float(top), float(right), float(bottom)), (float(left + x), float(top + y))


def interior_distance(mask: np.ndarray) -> np.ndarray:
    """Returns the squared Euclidean distance of each pixel to the nearest pixel off the mask or off its array."""
    padded = np.pad(mask, 1)
    steps = np.arange(padded.shape[0], dtype=np.float32)[:, None]
    above = np.maximum.accumulate(np.where(padded, np.float32(-1e4), steps), 0)
    below = np.minimum.accumulate(np.where(padded, np.float32(1e4), steps)[::-1], 0)[::-1]
    column = np.minimum(steps - above, below - steps) ** 2
    # No pixel lies deeper than half the shorter side, so farther columns cannot matter.
    reach = min(padded.shape) // 2 + 1
    best = column.copy()
    for step in range(1, reach + 1):
        if step >= padded.shape[1]:
            break
        np.minimum(best[:, step:], column[:, :-step] + step * step, out=best[:, step:])
        np.minimum(best[:, :-step], column[:, step:] + step * step, out=best[:, :-step])
    return best[1:-1, 1:-1]


def _find_relation(obj: SceneObject, objects: list[SceneObject]) -> tuple[str | None, SceneObject | None, bool]:
    """Returns where the object stands from its nearest neighbour, that neighbour, and whether this is decidable."""
    others = [other for other in objects if other is not obj]
    if obj.size == "large" or not others:
        return None, None, obj.size == "large"
    offsets = [middle_of(obj) - middle_of(other) for other in others]
    distances = [float(np.hypot(*offset)) for offset in offsets]
    order = np.argsort(distances)
    side = side_of(offsets[order[0]])
    if side is None or (len(others) > 1 and distances[order[0]] > _CLEAR_RATIO * distances[order[1]]):
        return None, None, False
    return side, others[order[0]], True


def side_of(offset: np.ndarray) -> str | None:
    """Returns on which side an offset (x, y) leads, one of `RELATIONS`; None where that is a matter of opinion."""
    angle = float(np.arctan2(min(np.abs(offset)), max(np.abs(offset))))
    if angle > _CLEAR_ANGLE:
        return None
    horizontal = abs(offset[0]) >= abs(offset[1])
    before = offset[0 if horizontal else 1] < 0
    return RELATIONS[(0 if horizontal else 2) + (0 if before else 1)]


def middle_of(obj: SceneObject) -> np.ndarray:
    """Returns the middle (x, y) of an object's box, in pixels."""
    return np.array([obj.box[0] + obj.box[2], obj.box[1] + obj.box[3]]) / 2


def describe(obj: SceneObject, rng: np.random.Generator) -> list[str]:
    """Writes several captions of one object."""
    return [_with_article(_sentence(obj, rng), rng) for _ in range(CAPTIONS_PER_OBJECT)]


def _sentence(obj: SceneObject, rng: np.random.Generator) -> str:
    size = "" if obj.size == "medium" else pick(SYNONYMS[obj.size], rng)
    shape = _word(obj.shape, rng)
    form = int(rng.integers(4))
    if form == 0 and obj.texture in PATTERNS:
        head = f"{size} {obj.color} {shape} {PATTERNS[obj.texture]}"
    elif form == 1:
        head = f"{size} {obj.color} {obj.texture} {shape}"
    else:
        head = f"{size} {obj.texture} {obj.color} {shape}"
    if obj.relation is None or obj.reference is None:
        return head.strip()
    place = pick(_PLACES[obj.relation], rng)
    if rng.random() >= NAMED_NEIGHBOURS:
        return f"{head.strip()} {place} its neighbour"
    article = pick(("the", "the", "a"), rng)
    other = f"{obj.reference.color} {_word(obj.reference.shape, rng)}"
    if article == "a" and other[0] in "aeiou":
        article = "an"
    return f"{head.strip()} {place} {article} {other}"


def _with_article(text: str, rng: np.random.Generator) -> str:
    article = pick(("a", "a", "the"), rng)
    return f"{'an' if article == 'a' and text[0] in 'aeiou' else article} {text}"


def _word(name: str, rng: np.random.Generator) -> str:
    return pick(SYNONYMS.get(name, (name,)), rng)


def pick(options: Sequence[_Option], rng: np.random.Generator) -> _Option:
    """Returns one of the options."""
    return options[int(rng.integers(len(options)))]


def read_caption(text: str) -> dict[str, str | None]:
    """Reads the canonical words of a caption: color, shape, texture, size, relation, reference_color, ..._shape.

    Words before the relation speak of the object, words after it of its neighbour. An attribute that is not
    stated, or stated with two different values, is None.
    """
    text = text.lower()
    found = _RELATION_PATTERN.search(text)
    head, tail = (text[: found.start()], text[found.end() :]) if found else (text, "")
    said = {attribute: read_attribute(head, attribute) for attribute in ("color", "shape", "texture", "size")}
    side, above, below = found.groups() if found else (None, None, None)
    said["relation"] = side or ("above" if above else "below" if below else None)
    said["reference_color"] = read_attribute(tail, "color")
    said["reference_shape"] = read_attribute(tail, "shape")
    return said


def read_attribute(text: str, attribute: str) -> str | None:
    """Reads color, shape, texture or size out of a text in lower case; None where it has none, or two."""
    values = {
        _VOCABULARY[word][1] for word in re.findall(r"[a-z]+", text) if _VOCABULARY.get(word, ("",))[0] == attribute
    }
    return values.pop() if len(values) == 1 else None
