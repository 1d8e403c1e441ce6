"""The HTTP interface: masks and captions for regions, or for everything in a picture. `/docs` describes it."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model
from starlette.exceptions import HTTPException

from .. import __version__
from ..data.writers import coco_annotations
from ..processing.anything_settings_sca import AnythingSettings
from ..processing.region_prompts_sca import REGION_SCHEMA
from .docs_page import docs_page
from .engine import Engine
from .gate import Bodies, Gate
from .images import ImageStore, StoredImage
from .limits import RequestError


_DESCRIPTION = """
Point at something in a picture with a point, a box or a mask to get its mask and a caption, or caption everything.
Coordinates are pixels of the upright picture, x to the right, y down; boxes are `[x1, y1, x2, y2]`, masks COCO RLE.
"""
# A field that is not known costs an error of its own.
_MAX_FIELDS = 64
Number = Annotated[float, Field(allow_inf_nan=False)]


class Rle(BaseModel):
    """A mask as COCO RLE, compressed or not."""

    model_config = ConfigDict(extra="forbid")
    size: tuple[int, int] = Field(description="height, width")
    counts: str | list[int]


class _Picture(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: str | None = Field(None, description="the picture's file as base64; give either this or image_id")
    image_id: str | None = Field(None, description="id of a stored picture, from POST /v1/images")
    model: str | None = Field(None, description="one of GET /v1/models; the first by default")
    task: str | None = Field(None, description="one of the model's tasks, usually caption or recognition")
    length: str | int | None = Field(None, description="short, sentence, detailed or a number of words, if learned")
    language: str | None = Field(None, description="of the captions, a tag such as de or zh-Hans, if learned")
    num_beams: int | None = Field(None, description="beams to search with; greedy by default")
    max_new_tokens: int | None = Field(None, description="maximum number of tokens per caption")


class CaptionRequest(_Picture):
    """Regions to segment and caption."""

    # Read by the rule that all doors share, once the size of the picture is known.
    regions: Annotated[Any, WithJsonSchema({"type": "array", "minItems": 1, "items": REGION_SCHEMA})]
    do_sample: bool | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    all_masks: bool = Field(False, description="also return the candidate masks of each region")
    stream: bool = Field(False, description="stream the captions as they grow, one JSON object per line")


class AnythingRequest(_Picture):
    """Everything in a picture; settings that are left out are the model's own."""

    format: Literal["records", "coco"] = "records"

    def settings(self) -> dict[str, Any]:
        """The settings that were given."""
        names = (setting.name for setting in fields(AnythingSettings))
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def _setting_field(setting: Any) -> tuple[Any, Any]:
    """A setting of anything mode as a field of a request, with its description and range."""
    kind, meta = type(setting.default), setting.metadata
    if meta["choices"]:
        return Literal[meta["choices"]] | None, Field(None, description=meta["help"])
    options: dict[str, Any] = {"allow_inf_nan": False} if kind is float else {}
    if kind in (int, float):
        bounds = {"ge": meta["low"], "le": meta["high"]}
        options |= {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
    return kind | None, Field(None, description=meta["help"], strict=True, **options)


if not TYPE_CHECKING:
    AnythingRequest = create_model(
        "AnythingRequest",
        __base__=AnythingRequest,
        __doc__=AnythingRequest.__doc__,
        **{s.name: _setting_field(s) for s in fields(AnythingSettings) if s.name not in _Picture.model_fields},
    )


class ErrorResponse(BaseModel):
    """What was wrong with a request."""

    error: str = Field(description="a sentence")


_CONFIDENCE = "how likely the region is like the training data: below 0.5 the caption is a guess"


class Mask(BaseModel):
    """A mask of a region, as large as the picture."""

    mask: Rle
    iou: float = Field(description="the model's own estimate of its IoU with the true mask")
    box: tuple[float, float, float, float] | None = Field(description="tight box of the mask; null if it is empty")


class Region(Mask):
    """A region with its best mask, and the keys of your own that came with its prompt."""

    model_config = ConfigDict(extra="allow")
    caption: str
    score: float = Field(description="mean log-probability of the caption's tokens")
    confidence: float | None = Field(None, description=_CONFIDENCE)
    masks: list[Mask] | None = Field(None, description="the candidates, if all_masks is true")
    input: dict[str, Any] | None = Field(
        None, description="your own keys that share a name with a field of the answer"
    )


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
    crop_box: tuple[float, float, float, float] = Field(description="x, y, width, height of the crop it was found in")
    caption: str
    score: float
    confidence: float | None = Field(None, description=_CONFIDENCE)


class AnythingResponse(BaseModel):
    """The things in a picture, best estimated IoU first."""

    regions: list[AnythingRegion]


class CocoResponse(BaseModel):
    """The same as COCO instances, each annotation with a `caption`."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


class KeptImage(BaseModel):
    """A picture that is kept for later requests."""

    image_id: str
    width: int
    height: int


class Models(BaseModel):
    """Names of models, the default one first."""

    models: list[str]


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok"]
    version: str
    waiting: int = Field(description="number of waiting requests")


# Documents the answers without validating them on their way out; the tests do that.
def _answers(model: Any, *refusals: int, status: int = 200) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": model}, **{code: {"model": ErrorResponse} for code in refusals}}


_FILE = {"type": "string", "format": "binary"}
_REFUSED = (400, 401, 404, 410, 413, 415, 422, 429)


class _Request(Request):
    """Reads its JSON in a thread of its own: others are answered meanwhile."""

    async def json(self) -> Any:
        """Returns the value, which has no more fields than a request can have."""
        value = await run_in_threadpool(json.loads, await self.body())
        if isinstance(value, dict) and len(value) > _MAX_FIELDS:
            raise HTTPException(422, f"The request has {len(value)} fields, more than there are")
        return value


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Any]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Any:
            return await handler(_Request(request.scope, request.receive))

        return handle


def create_app(engine: Engine, store: ImageStore | None = None, root: bool = True) -> FastAPI:
    """Builds the application over an engine; `root`: whether `GET /` points to its documentation, or is a page's."""
    # The library's own documentation takes its script, style and icon from elsewhere.
    app = FastAPI(title="sca-hf", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    pictures = ImageStore(engine.limits.kept_pixels) if store is None else store
    _add_errors(app)
    _add_documentation(app, engine, root)
    _add_state(app, engine)
    app.router.route_class = _Route
    app.add_middleware(Bodies, limits=engine.limits)
    app.add_middleware(Gate)

    async def picture_of(request: _Picture) -> StoredImage:
        if (request.image is None) == (request.image_id is None):
            raise RequestError("Give either image or image_id.")
        if request.image_id is not None:
            return pictures.get(request.image_id)
        return await run_in_threadpool(engine.open_base64, request.image or "")

    @app.post(
        "/v1/images",
        summary="Store a picture for later requests; the body is its file",
        status_code=201,
        responses=_answers(KeptImage, 401, 413, 415, 422, status=201),
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": _FILE}}}},
    )
    async def keep(request: Request) -> dict[str, Any]:
        image = await run_in_threadpool(engine.open_image, await request.body())
        return {"image_id": pictures.add(image), "width": image.picture.width, "height": image.picture.height}

    @app.post("/v1/caption", summary="Masks and captions of regions", responses=_answers(CaptionResponse, *_REFUSED))
    async def caption(request: CaptionRequest) -> Any:
        image = await picture_of(request)
        regions = await run_in_threadpool(engine.limits.read_regions, request.regions, image.size)
        names = ("num_beams", "max_new_tokens", "do_sample", "temperature", "top_p")
        generation = {name: getattr(request, name) for name in names}
        asked = request.length, request.language
        arguments = (image, regions, request.model, request.task, generation, *asked)
        if request.stream:
            lines = await _stream(engine, arguments, request.all_masks)
            return StreamingResponse(lines, media_type="application/x-ndjson")
        future = await run_in_threadpool(engine.submit, *arguments)
        return {"regions": _trimmed(await asyncio.wrap_future(future), request.all_masks)}

    @app.post(
        "/v1/anything",
        summary="Masks and captions of everything in a picture",
        responses=_answers(AnythingResponse | CocoResponse, *_REFUSED),
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


def _add_documentation(app: FastAPI, engine: Engine, root: bool) -> None:
    """Adds the page that describes the interface, and the way to it."""

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        address = str(request.base_url).rstrip("/")
        return HTMLResponse(docs_page(app.openapi(), engine.models, engine.limits, address))

    if not root:
        return

    @app.get("/", include_in_schema=False)
    async def point(request: Request) -> Any:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("docs")
        return {"name": app.title, "version": app.version, "documentation": "/docs", "openapi": "/openapi.json"}


def _add_state(app: FastAPI, engine: Engine) -> None:
    """Adds the endpoints that report on the engine."""

    @app.get("/v1/models", summary="List the models", responses=_answers(Models, 401))
    async def models() -> dict[str, Any]:
        return {"models": engine.models}

    @app.get(
        "/v1/models/{name:path}",
        summary="Describe a model",
        responses={code: {"model": ErrorResponse} for code in (401, 404, 422)},
    )
    async def model(name: str) -> dict[str, Any]:
        return await run_in_threadpool(engine.describe, name)

    @app.get(
        "/health", summary="Whether the server is up, and the number of waiting requests", responses=_answers(Health)
    )
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "waiting": engine.waiting()}

    @app.get(
        "/metrics",
        summary="Counters, in Prometheus' text format",
        response_class=PlainTextResponse,
        responses={401: {"model": ErrorResponse}},
    )
    async def metrics() -> str:
        lines = [f"# TYPE sca_{n}_total counter\nsca_{n}_total {v:g}" for n, v in engine.counts.items()]
        return "\n".join([*lines, f"# TYPE sca_waiting gauge\nsca_waiting {engine.waiting()}"]) + "\n"


def _add_errors(app: FastAPI) -> None:
    """Makes every error `{"error": a sentence}`."""

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
    """Yields lines `{"captions": [...]}` as they grow, then `{"regions": [...]}`."""
    loop, news = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def tell(value: Any) -> None:
        loop.call_soon_threadsafe(news.put_nowait, value)

    # Errors of the request are raised here, while its status can still be set.
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
