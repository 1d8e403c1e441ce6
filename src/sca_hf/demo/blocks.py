"""The page as one component of Gradio: its markup, style and script lie in `page/`, its requests are answered here.

The script calls these functions through Gradio, not the HTTP interface beside the page: the component also works where
somebody else launches or mounts it, under any path and without that interface. Regions, limits and settings are those
of `serving/`; what is added here is the size at which the picture is shown, progress, and one job per session.

Nothing that the browser sends is opened as a path or an address: pictures come as bytes and go by names that nobody
can guess, models by names of a list.
"""

import base64
import html
import io
import logging
import math
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import wraps
from importlib import resources
from typing import Any

import gradio as gr
import numpy as np
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.routing import BaseRoute

from ..anything.folder import draw_records
from ..drawing.labels import widest_point
from ..drawing.overlay import PALETTE
from ..processing.anything_settings_sca import AnythingSettings
from ..processing.masks_sca import decode_rle, encode_rle
from ..serving.api import create_app
from ..serving.engine import Engine
from ..serving.images import ImageStore, StoredImage
from ..serving.limits import Limits, RequestError
from .examples import EXAMPLES


# The longer side of the picture that the browser shows, pixels.
_VIEW = 1024
# The longer side of an example in the list of them.
_THUMBNAIL = 160
# Where each step begins on the progress bar, how much of it the step takes, and what it is called.
_STEPS = {
    "encoding": (0.0, 0.15, "Looking at the picture"),
    "masks": (0.15, 0.7, "Finding things"),
    "captions": (0.85, 0.15, "Writing captions"),
}
_MAX_DRAWN = 200
# What the page chooses of captions beside arguments of `generate`.
_ASKED = ("task", "length", "language")
# What the page asks of Gradio: its document, its script, style and fonts, and the functions of `PageAnswers`.
_PAGE_ROUTES = re.compile(
    r"(GET|HEAD) /(theme\.css|favicon\.ico|(assets|static)/[\w-][\w./-]*)?|POST /gradio_api/component_server/?"
)
# The longer side of the picture that is drawn to be kept.
_DRAWN = 1200
# The settings of anything mode that the page offers, in its own words; ranges and explanations are the setting's.
_SLIDERS = {
    "points_per_side": "Grid points per side",
    "pred_iou_thresh": "Outlines at least this good",
    "stability_score_thresh": "Outlines at least this stable",
    "box_nms_thresh": "Regions overlap at most this much",
}
_CHECKBOXES = {"unique_captions": "One region per caption"}
_log = logging.getLogger(__name__)
Payload = dict[str, Any]


def build_page(engine: Engine, store: ImageStore | None = None) -> gr.Blocks:
    """Builds the page over an engine."""
    answers = PageAnswers(engine, store)
    with gr.Blocks(title="Segment and Caption Anything", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(
            html_template=_read("page.html").replace("<!-- settings -->", settings_markup(engine.limits)),
            css_template=_read("page.css"),
            js_on_load="".join(_read(name) for name in ("masks.js", "stage.js", "calls.js", "regions.js", "page.js")),
            apply_default_css=False,
            server_functions=answers.functions(),
        )
    return page


def page_app(engine: Engine) -> Any:
    """The page, and the HTTP interface beside it, as one application."""
    store = ImageStore(engine.limits.kept_pixels)
    app = create_app(engine, store, root=False)
    app.add_middleware(OnlyThePage, interface=list(app.routes))
    return gr.mount_gradio_app(app, build_page(engine, store), path="/", footer_links=[])


class OnlyThePage:
    """Closes every route that neither the page nor the HTTP interface uses: Gradio has many, and some write files.

    Args:
        app: the ASGI application behind it.
        interface: routes of the HTTP interface.
    """

    def __init__(self, app: Any, interface: Sequence[BaseRoute]) -> None:
        self.app, self.interface = app, interface

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers with 404 where a path is of no use to the page."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._is_open(scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await JSONResponse({"error": "There is nothing here."}, 404)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_open(self, scope: Any) -> bool:
        wanted = f"{scope['method']} {scope['path']}"
        return bool(_PAGE_ROUTES.fullmatch(wanted)) or any(route.matches(scope)[0].value for route in self.interface)


def settings_markup(limits: Limits) -> str:
    """The controls for settings of anything mode, as HTML."""
    known = {setting.name: setting.metadata for setting in fields(AnythingSettings)}
    lines = []
    for name, label in _SLIDERS.items():
        whole = isinstance(getattr(AnythingSettings, name), int)
        high = min(known[name]["high"], getattr(limits, name, math.inf))
        lines.append(
            f'<label title="{html.escape(known[name]["help"])}">{label} <span class="value" data-out="{name}"></span> '
            f'<input type="range" min="{known[name]["low"]}" max="{high}" step="{1 if whole else 0.01}" '
            f'data-set="{name}"></label>'
        )
    lines += [
        f'<label class="check" title="{html.escape(known[name]["help"])}">'
        f'<input type="checkbox" data-set="{name}"> {label}</label>'
        for name, label in _CHECKBOXES.items()
    ]
    return "\n".join(lines)


def presets(own: Payload, limits: Limits) -> dict[str, Payload]:
    """Settings by name, from few regions to many, as they differ from those of a model.

    Args:
        own: the model's settings.
        limits: what may be asked for.
    """
    side = own["points_per_side"]
    dense = {name: round(0.85 * own[name], 2) for name in ("pred_iou_thresh", "stability_score_thresh")}
    dense |= {"points_per_side": min(2 * side, limits.points_per_side)}
    return {
        "sparse": {"points_per_side": max(1, side // 2), "unique_captions": True},
        "normal": {},
        "dense": {**dense, "box_nms_thresh": min(1.0, round(own["box_nms_thresh"] + 0.15, 2))},
    }


def _read(name: str) -> str:
    return (resources.files("sca_hf.demo") / "page" / name).read_text(encoding="utf-8")


def _answering(function: Callable[[Any, Payload], Payload]) -> Callable[[Any, Any], Payload]:
    """Turns errors into a sentence for the page to show."""

    @wraps(function)
    def answer(self: Any, payload: Any) -> Payload:
        try:
            # Gradio hands over one argument, or a list of them.
            payload = payload[0] if isinstance(payload, list) and len(payload) == 1 else payload
            if not isinstance(payload, dict):
                raise RequestError("The page sent an invalid request.")
            return function(self, payload)
        except RequestError as error:
            return {"error": str(error), "gone": error.status == 410}
        except Exception:  # noqa: BLE001, people get a sentence, the log the traceback
            _log.exception("a request of the page failed")
            return {"error": "Something went wrong on the server; please try again."}

    return answer


class PageAnswers:
    """The functions that the page calls; every answer is JSON, an error is `{"error": sentence}`."""

    def __init__(self, engine: Engine, store: ImageStore | None = None) -> None:
        self.engine, self.pictures = engine, ImageStore(engine.limits.kept_pixels) if store is None else store
        self._progress: OrderedDict[str, Payload] = OrderedDict()
        self._busy: dict[str, str] = {}
        self._lock = threading.Lock()

    def functions(self) -> list[Callable[[Any], Any]]:
        """The functions that Gradio offers to the page's script, each under its own name."""
        names = ("start", "open_picture", "describe_model", "describe", "everything", "progress", "cancel", "draw")
        return [alive, *(_plain(getattr(self, name)) for name in names)]

    @_answering
    def start(self, payload: Payload) -> Payload:
        """What a page needs when it is opened, without waiting for a model."""
        return {
            "session": secrets.token_urlsafe(12),
            "models": self.engine.models,
            "examples": [_thumbnail(example.read()) | asdict(example) for example in EXAMPLES],
            "palette": PALETTE,
            "view": _VIEW,
            "limits": {"bytes": self.engine.limits.file_bytes},
        }

    @_answering
    def describe_model(self, payload: Payload) -> Payload:
        """Describes a model, which is loaded now if it is not yet, with `presets` and `card`, its card's text."""
        known = self.engine.describe(_text(payload, "model"))
        card = self.engine.model_card(known["name"])
        return {**known, "presets": presets(known["anything"], self.engine.limits), "card": card}

    @_answering
    def open_picture(self, payload: Payload) -> Payload:
        """Takes a picture, by its bytes or the number of an example.

        Returns:
            `image_id`, `width`, `height`, and `view`, the picture at the size at which it is shown.
        """
        if "example" in payload:
            number = payload["example"]
            if not isinstance(number, int) or not 0 <= number < len(EXAMPLES):
                raise RequestError("There is no such example.")
            image = self.engine.open_image(EXAMPLES[number].read())
        else:
            image = self.engine.open_base64(_text(payload, "data") or "")
        self.engine.encode_soon(image, _text(payload, "model"))
        picture = image.picture
        view = picture.resize(_view_size(image), Image.Resampling.LANCZOS)
        known = {"image_id": self.pictures.add(image), "width": picture.width, "height": picture.height}
        return {**known, "view": _data_url(view, "PNG" if view.width * view.height <= 1 << 17 else "JPEG")}

    @_answering
    def describe(self, payload: Payload) -> Payload:
        """Segments and captions one region.

        Returns:
            A record of the engine, of whose masks each also has `area`, and `view`, the mask as the page shows it.
        """
        image = self._image(payload)
        options = _options(payload)
        # A brush paints on the picture as it is shown.
        regions = self.engine.limits.read_regions([payload.get("region")], image.size, _view_size(image)[::-1])
        task, length, language = (options.pop(name, None) for name in _ASKED)
        future = self.engine.submit(image, regions, _text(payload, "model"), task, options, length, language)
        record = {name: value for name, value in future.result()[0].items() if name not in ("mask", "box")}
        return {**record, "masks": [{**mask, **_viewed(mask["mask"], image)} for mask in record["masks"]]}

    @_answering
    def everything(self, payload: Payload) -> Payload:
        """Captions everything in a picture: one at a time for each session."""
        image, options = self._image(payload), _options(payload)
        session, job = _text(payload, "session") or "", _text(payload, "job") or ""
        chosen = {name: value for name in _ASKED if (value := options.pop(name, None))}
        settings = _table(payload, "settings") | chosen
        with self._lock:
            if session in self._busy:
                raise RequestError("Your last picture is still being processed; please wait.", 429)
            self._busy[session] = job
        try:
            records = self.engine.anything(
                image, settings, _text(payload, "model"), options, lambda *step: self._note(session, job, *step)
            )
        finally:
            with self._lock:
                if self._busy.get(session) == job:
                    del self._busy[session]
                self._progress.pop(job, None)
        return {"regions": [{**r, **_viewed(r["segmentation"], image)} for r in records]}

    @_answering
    def cancel(self, payload: Payload) -> Payload:
        """Ends `everything` of a session: the session may begin again at once, the work ends with its current step."""
        session, job = _text(payload, "session") or "", _text(payload, "job") or ""
        with self._lock:
            if self._busy.get(session) == job:
                del self._busy[session]
        return {}

    @_answering
    def progress(self, payload: Payload) -> Payload:
        """How far `everything` is with a job: a `fraction` of the whole, and a `text`."""
        with self._lock:
            return self._progress.get(_text(payload, "job") or "", {"fraction": 0.0, "text": "Waiting"})

    @_answering
    def draw(self, payload: Payload) -> Payload:
        """Draws regions as `sca-hf caption --overlay` does: `png`, a base64 picture."""
        image, regions = self._image(payload), payload.get("regions")
        if not isinstance(regions, list) or len(regions) > _MAX_DRAWN:
            raise RequestError(f"The limit is {_MAX_DRAWN} drawn regions.")
        scale = min(1.0, _DRAWN / max(image.size))
        size = (max(1, round(image.picture.width * scale)), max(1, round(image.picture.height * scale)))
        records = []
        for region in regions:
            mask = _sampled(_mask(region, image), size)
            record = {
                "caption": str(region.get("caption"))[:500],
                "segmentation": encode_rle(mask),
                "area": mask.sum(),
            }
            sure = region.get("confidence")
            records.append(record | ({"confidence": sure} if isinstance(sure, int | float) else {}))
        picture = image.picture.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image.picture
        return {"png": base64.b64encode(_bytes_of(draw_records(picture, records), "PNG")).decode()}

    def _image(self, payload: Payload) -> StoredImage:
        return self.pictures.get(_text(payload, "image_id") or "")

    def _note(self, session: str, job: str, step: str, done: int, total: int) -> None:
        begin, width, text = _STEPS[step]
        fraction = begin + width * (done / total if total else 0.0)
        with self._lock:
            if self._busy.get(session) != job:
                raise RequestError("This was cancelled.", 499)
            self._progress[job] = {"fraction": fraction, "text": text}
            while len(self._progress) > 256:
                self._progress.popitem(last=False)


async def alive(payload: Any) -> Payload:
    """Answers at once, whatever else is being worked on."""
    return {"alive": True}


def _plain(method: Callable[[Any], Payload]) -> Callable[[Any], Payload]:
    """A function of one argument with the method's name: Gradio marks it, which methods do not allow."""

    return wraps(method)(lambda payload: method(payload))


def _text(payload: Payload, name: str) -> str | None:
    value = payload.get(name)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{name} is not a string.")
    return value


def _table(payload: Payload, name: str) -> Payload:
    values = payload.get(name) or {}
    if not isinstance(values, dict):
        raise RequestError(f"The {name} are not a mapping of names to values.")
    return {name: value for name, value in values.items() if value is not None}


def _options(payload: Payload) -> Payload:
    options = _table(payload, "options")
    for name in _ASKED:
        _text(options, name)
    return options


def _mask(region: Any, image: StoredImage) -> np.ndarray:
    """The mask of a record, which may be empty."""
    rle = region.get("segmentation") if isinstance(region, dict) else None
    # The size is looked at first: a few characters could claim any.
    if not isinstance(rle, dict) or rle.get("size") != list(image.size):
        raise RequestError("A mask does not have the picture's size.")
    try:
        return decode_rle(rle)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _view_size(image: StoredImage) -> tuple[int, int]:
    """Width and height at which a picture is shown; small ones are enlarged by a whole number."""
    width, height = image.picture.size
    longest = max(width, height)
    scale = _VIEW / longest if longest > _VIEW else float(max(1, min(4, _VIEW // longest)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _viewed(rle: Payload, image: StoredImage) -> Payload:
    """A mask as the page shows it: `view`, its `area` in pixels of the picture, `spot`, the x, y to write on it."""
    mask = decode_rle(rle)
    size = _view_size(image)
    widest = widest_point(mask)
    spot = widest and [widest[0] * size[0] / mask.shape[1], widest[1] * size[1] / mask.shape[0]]
    return {"area": int(mask.sum()), "view": encode_rle(_sampled(mask, size)), "spot": spot}


def _sampled(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask scaled to another width and height, by nearest neighbor."""
    rows = (np.arange(size[1]) * mask.shape[0]) // size[1]
    columns = (np.arange(size[0]) * mask.shape[1]) // size[0]
    return mask[rows][:, columns]


def _thumbnail(data: bytes) -> Payload:
    """A picture's `width` and `height`, and a small copy of it, `view`."""
    with Image.open(io.BytesIO(data)) as picture:
        known = {"width": picture.width, "height": picture.height}
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return {**known, "view": _data_url(picture, "JPEG")}


def _bytes_of(picture: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **({"quality": 88} if format == "JPEG" else {}))
    return buffer.getvalue()


def _data_url(picture: Image.Image, format: str) -> str:
    return f"data:image/{format.lower()};base64,{base64.b64encode(_bytes_of(picture, format)).decode()}"
