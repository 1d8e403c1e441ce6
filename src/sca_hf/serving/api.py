"""The HTTP interface: masks and captions for regions, or for everything in a picture. `/docs` describes it."""

import asyncio
import base64
import binascii
import ctypes
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from .. import __version__
from ..anything.coco import coco_annotations
from ..processing.masks_sca import decode_rle
from ..prompt_arguments import RegionPrompt
from .engine import Engine, ImageStore, StoredImage
from .limits import RequestError


_DESCRIPTION = """
Point at something in a picture, by a point, a box or a mask, and get its mask and a caption; or get everything in it.
Coordinates are pixels of the upright picture, x to the right, y down, boxes `[x1, y1, x2, y2]`, masks COCO RLE.
"""
Number = Annotated[float, Field(allow_inf_nan=False)]


class Rle(BaseModel):
    """A mask as COCO RLE, compressed or not."""

    model_config = ConfigDict(extra="forbid")
    size: tuple[int, int] = Field(description="height, width")
    counts: str | list[int]


class Prompt(BaseModel):
    """Where one region is; at least one of box, points and mask."""

    model_config = ConfigDict(extra="forbid")
    box: tuple[Number, Number, Number, Number] | None = Field(None, examples=[[31, 25, 99, 103]])
    points: list[tuple[Number, Number]] = Field(default_factory=list)
    labels: list[Literal[0, 1]] | None = Field(None, description="1 inside, 0 outside, one per point; 1 by default")
    mask: Rle | None = None

    def to_region(self, number: int, size: tuple[int, int]) -> RegionPrompt:
        """What the engine takes; `size` is height and width of the picture."""
        labels: list[int] = [1] * len(self.points) if self.labels is None else list(self.labels)
        if len(labels) != len(self.points):
            raise RequestError(f"Region {number} has {len(self.points)} points and {len(labels)} labels.")
        if self.box is None and not self.points and self.mask is None:
            raise RequestError(f"Region {number} has no prompt; give it a box, points or a mask.")
        mask = None
        if self.mask is not None:
            if tuple(self.mask.size) != size:  # before a few characters are unpacked to a gigabyte
                raise RequestError(
                    f"The mask of region {number} has size {list(self.mask.size)}, the picture {list(size)}."
                )
            try:
                mask = decode_rle(self.mask.model_dump(), f"The mask of region {number}")
            except ValueError as error:
                raise RequestError(str(error)) from None
        box = None if self.box is None else list(self.box)
        return RegionPrompt(box, [list(point) for point in self.points], labels, mask)


class _Picture(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: str | None = Field(None, description="the picture's file as base64, or")
    image_id: str | None = Field(None, description="what POST /v1/images returned for it")
    model: str | None = Field(None, description="one of GET /v1/models; the first by default")
    task: str | None = Field(None, description="a task of the model, usually caption or recognition")
    num_beams: int | None = Field(None, description="beams to search with; greedy by default")
    max_new_tokens: int | None = None


class CaptionRequest(_Picture):
    """Regions to segment and caption."""

    regions: list[Prompt]
    do_sample: bool | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    all_masks: bool = Field(False, description="also give the candidate masks of each region")
    stream: bool = Field(False, description="give the captions as they grow, one JSON object per line")


class AnythingRequest(_Picture):
    """Everything in a picture; what is left out is as the model has it."""

    points_per_side: int | None = None
    pred_iou_thresh: Number | None = None
    stability_score_thresh: Number | None = None
    box_nms_thresh: Number | None = None
    mask_nms_thresh: Number | None = None
    min_area: Number | None = None
    max_area: Number | None = None
    min_mask_region_area: int | None = None
    crop_n_layers: int | None = None
    caption_prompt: Literal["point", "box", "mask"] | None = None
    unique_captions: bool | None = None
    format: Literal["records", "coco"] = "records"

    def settings(self) -> dict[str, Any]:
        """Those that were given."""
        names = set(AnythingRequest.model_fields) - set(_Picture.model_fields) - {"format"} | {"task"}
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class ErrorResponse(BaseModel):
    """What was wrong with a request."""

    error: str = Field(description="a sentence")


class Mask(BaseModel):
    """A mask of a region, as large as the picture."""

    mask: Rle
    iou: float = Field(description="the model's own guess of its IoU with the true mask")
    box: tuple[float, float, float, float] | None = Field(description="that just holds the mask; null if it is empty")


class Region(Mask):
    """A region with its best mask."""

    caption: str
    score: float = Field(description="mean log-probability of the caption's tokens")
    masks: list[Mask] | None = Field(None, description="the candidates, if all_masks asked for them")


class CaptionResponse(BaseModel):
    """Regions in the order of the request."""

    regions: list[Region]


class AnythingRegion(BaseModel):
    """One thing in a picture; the fields of SAM's automatic masks, a caption and its score."""

    segmentation: Rle
    area: int
    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height")
    predicted_iou: float
    stability_score: float
    point_coords: list[tuple[float, float]] | None = Field(description="the point that found it")
    crop_box: tuple[float, float, float, float] = Field(description="x, y, width, height of the cut it was found in")
    caption: str
    score: float


class AnythingAnswer(BaseModel):
    """Best first."""

    regions: list[AnythingRegion]


class CocoAnswer(BaseModel):
    """COCO instances, each annotation with a `caption`."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


class KeptImage(BaseModel):
    """The name of a picture that is kept."""

    image_id: str
    width: int
    height: int


class Models(BaseModel):
    """Names of models, the default one first."""

    models: list[str]


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok"]
    version: str
    waiting: int = Field(description="requests that wait")


# Documents answers without checking them again on their way out; the tests do.
def _answers(model: Any, *refusals: int, status: int = 200) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": model}, **{code: {"model": ErrorResponse} for code in refusals}}


_FILE = {"type": "string", "format": "binary"}
_REFUSED = (400, 404, 410, 413, 415, 422, 429)


def create_app(engine: Engine, store: ImageStore | None = None) -> FastAPI:
    """Builds the application over an engine."""
    app = FastAPI(title="sca-hf", version=__version__, description=_DESCRIPTION)
    pictures = store or ImageStore()
    _add_errors(app)
    _add_state(app, engine)
    app.add_middleware(BodyLimit, limit=2 * engine.limits.file_bytes)

    async def picture_of(request: _Picture) -> StoredImage:
        if (request.image is None) == (request.image_id is None):
            raise RequestError("Give either image or image_id.")
        if request.image_id is not None:
            return pictures.get(request.image_id)
        try:
            data = base64.b64decode((request.image or "").rpartition("base64,")[2], validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("image is not base64.") from None
        return await run_in_threadpool(engine.open_image, data)

    @app.post(
        "/v1/images",
        summary="Keep a picture for several requests: its file is the body",
        status_code=201,
        responses=_answers(KeptImage, 413, 415, 422, status=201),
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": _FILE}}}},
    )
    async def keep(request: Request) -> dict[str, Any]:
        image = await run_in_threadpool(engine.open_image, await request.body())
        return {"image_id": pictures.add(image), "width": image.picture.width, "height": image.picture.height}

    @app.post("/v1/caption", summary="Masks and captions of regions", responses=_answers(CaptionResponse, *_REFUSED))
    async def caption(request: CaptionRequest) -> Any:
        if len(request.regions) > engine.limits.regions:
            raise RequestError(f"{len(request.regions)} regions are too many; at most {engine.limits.regions}.", 413)
        image = await picture_of(request)
        # Looked at before masks are unpacked.
        masks = sum(prompt.mask is not None for prompt in request.regions)
        if masks * image.picture.width * image.picture.height > engine.limits.mask_pixels:
            raise RequestError(f"{masks} masks are too many for a picture of this size.", 413)
        regions = [prompt.to_region(number, image.size) for number, prompt in enumerate(request.regions, 1)]
        names = ("num_beams", "max_new_tokens", "do_sample", "temperature", "top_p")
        generation = {name: getattr(request, name) for name in names}
        arguments = (image, regions, request.model, request.task, generation)
        if request.stream:
            lines = await _stream(engine, arguments, request.all_masks)
            return StreamingResponse(lines, media_type="application/x-ndjson")
        future = await run_in_threadpool(engine.submit, *arguments)
        return {"regions": _trimmed(await asyncio.wrap_future(future), request.all_masks)}

    @app.post(
        "/v1/anything",
        summary="Masks and captions of everything in a picture",
        responses=_answers(AnythingAnswer | CocoAnswer, *_REFUSED),
    )
    async def anything(request: AnythingRequest) -> Any:
        image = await picture_of(request)
        generation = {"num_beams": request.num_beams, "max_new_tokens": request.max_new_tokens}
        records = await run_in_threadpool(engine.anything, image, request.settings(), request.model, generation)
        if request.format == "records":
            return {"regions": records}
        size = {"id": 1, "file_name": "image", "width": image.picture.width, "height": image.picture.height}
        category = {"id": 1, "name": "object", "supercategory": "object"}
        return {"images": [size], "annotations": list(coco_annotations(records, 1, 1)), "categories": [category]}

    return app


def _add_state(app: FastAPI, engine: Engine) -> None:
    """The endpoints that look at the engine."""

    @app.get("/v1/models", summary="The models that can be asked for", responses=_answers(Models))
    async def models() -> dict[str, Any]:
        return {"models": engine.models}

    @app.get(
        "/v1/models/{name:path}",
        summary="What one of them is",
        responses={404: {"model": ErrorResponse}, 422: {"model": ErrorResponse}},
    )
    async def model(name: str) -> dict[str, Any]:
        return await run_in_threadpool(engine.describe, name)

    @app.get("/health", summary="Is the server up, and how many requests wait?", responses=_answers(Health))
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "waiting": engine.waiting()}

    @app.get("/metrics", summary="Counters, in Prometheus' text format", response_class=PlainTextResponse)
    async def metrics() -> str:
        lines = [f"# TYPE sca_{n}_total counter\nsca_{n}_total {v:g}" for n, v in engine.counts.items()]
        return "\n".join([*lines, f"# TYPE sca_waiting gauge\nsca_waiting {engine.waiting()}"]) + "\n"


def _add_errors(app: FastAPI) -> None:
    """Every error is `{"error": a sentence}`."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": f"{str(error.detail).rstrip('.')}."}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # The input is not repeated: it may be huge, or hold what JSON cannot.
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse({"error": f"{place or 'The request'}: {first['msg']}."[:500]}, 422)


async def _stream(engine: Engine, arguments: Any, all_masks: bool) -> AsyncIterator[str]:
    """Lines `{"captions": [...]}` as they grow, at last `{"regions": [...]}`."""
    loop, news = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def tell(value: Any) -> None:
        loop.call_soon_threadsafe(news.put_nowait, value)

    # Raises here what is wrong with the request, while its status can still be told.
    future = await run_in_threadpool(engine.submit, *arguments, on_tokens=tell)
    future.add_done_callback(tell)

    async def lines() -> AsyncIterator[str]:
        while (value := await news.get()) is not future:
            yield json.dumps({"captions": value}, ensure_ascii=False) + "\n"
        if future.exception() is not None:
            yield json.dumps({"error": "The captions could not be made."}) + "\n"
        else:
            yield json.dumps({"regions": _trimmed(future.result(), all_masks)}, ensure_ascii=False) + "\n"

    return lines()


def _trimmed(records: list[dict[str, Any]], all_masks: bool) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "masks" or all_masks} for record in records]


class BodyLimit:
    """Refuses bodies above a limit while they arrive, before anything holds them.

    Args:
        limit: bytes.
    """

    def __init__(self, app: Any, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Passes a request on, or answers it with 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        seen, over = 0, told.isdigit() and int(told) > self.limit
        refusal = JSONResponse({"error": f"The request is too large; at most {self.limit} bytes are taken."}, 413)
        if over:
            await refusal(scope, receive, send)
            return

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise RequestError(f"The request is too large; at most {self.limit} bytes are taken.", 413)
            return message

        try:
            await self.app(scope, counted, send)
        except RequestError:
            await refusal(scope, receive, send)


_M_ARENA_MAX = -8  # of glibc's malloc.h


def serve_app(
    make_app: Callable[[Engine], Any],
    models: Sequence[str],
    host: str,
    port: int,
    device: str | None,
    started: Callable[[Engine], None] = lambda engine: None,
) -> None:
    """Serves what `make_app` makes of an engine for these models.

    Args:
        models, device: see [`Engine`].
        started: called with the engine, its default model loaded, before requests are taken.
    """
    limit_arenas()
    engine = Engine(models, device)
    engine.model()  # whoever comes first should not wait for it
    started(engine)
    uvicorn.run(make_app(engine), host=host, port=port, log_level="warning")


def limit_arenas(count: int = 2) -> bool:
    """Has glibc share memory among threads; True where that is the C library.

    It gives each of the server's many threads memory of its own, which keeps what was freed: the server would grow for
    as long as threads still meet larger requests than before.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "gnu_get_libc_version") and library.mallopt(_M_ARENA_MAX, count) == 1
