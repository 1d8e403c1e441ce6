import base64
import io
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from sca_hf.processing.images_sca import as_image, as_images
from sca_hf.testing import tiny_image


PICTURE = tiny_image()
PIXELS = np.asarray(PICTURE)


def encoded(image, image_format="PNG", **options):
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


def as_data_uri(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "image",
    [
        PICTURE,
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        torch.tensor(PIXELS).permute(2, 0, 1),
        torch.tensor(PIXELS).permute(2, 0, 1) / 255,
        (PIXELS / 255).astype(np.float64),
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int64),
        PIXELS.astype(np.uint16) << 8,
        PIXELS[None],
        np.dstack([PIXELS, PIXELS[..., :1]]),
        encoded(PICTURE),
        io.BytesIO(encoded(PICTURE)),
        as_data_uri(encoded(PICTURE)),
        base64.b64encode(encoded(PICTURE)).decode(),
        [[PICTURE]],
        {"bytes": encoded(PICTURE), "path": None},
        {"bytes": encoded(PICTURE), "path": "nowhere.png"},
        [{"bytes": encoded(PICTURE)}],
    ],
)
def test_every_form_gives_the_same_pixels(image):
    (read,) = as_images(image)
    assert read.mode == "RGB" and np.array_equal(np.asarray(read), PIXELS)


def test_paths_and_lists_are_read_in_order(tmp_path):
    for i in range(2):
        tiny_image(i).save(tmp_path / f"{i}.png")
    read = as_images([tmp_path / "0.png", str(tmp_path / "1.png")])
    assert [np.array_equal(np.asarray(r), np.asarray(tiny_image(i))) for i, r in enumerate(read)] == [True, True]
    for paths in ([{"path": str(tmp_path / "0.png"), "bytes": None}, PICTURE], column([PICTURE, tiny_image(1)])):
        assert [image.size for image in as_images(paths)] == [PICTURE.size, tiny_image(1).size]


def column(images):
    return datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))["image"]


def test_where_one_image_is_taken_several_are_refused():
    assert np.array_equal(np.asarray(as_image([PICTURE])), PIXELS)
    for several in ([PICTURE, PICTURE], np.stack([PIXELS] * 2), column([PICTURE] * 2)):
        with pytest.raises(ValueError, match="expected one image, got 2; call it once per image"):
            as_image(several)


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/silent.png":
            return time.sleep(1)
        if self.path in ("/endless.png", "/slow.png"):
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(b"x" * (1 << 20 if self.path == "/endless.png" else 1))
                    time.sleep(0.02 if self.path == "/slow.png" else 0)
        known = {"/picture.png": encoded(PICTURE), "/page.html": b"<html>"}
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            return self.end_headers()
        self.send_response(200 if self.path in known else 404)
        self.end_headers()
        self.wfile.write(known.get(self.path, b"no such picture"))

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_url_is_read_or_says_what_its_server_answered(address):
    for name in ("picture", "moved"):
        assert np.array_equal(np.asarray(as_images(f"{address}/{name}.png")[0]), PIXELS)
    with pytest.raises(ValueError, match=r"image 0 .*nowhere.png.* cannot be read: .*the server answered 404"):
        as_images(f"{address}/nowhere.png")
    with pytest.raises(ValueError, match=r"image 1 \('http.*page.html'\) cannot be read: UnidentifiedImageError"):
        as_images([PICTURE, f"{address}/page.html"])
    with pytest.raises(ValueError, match=r"image 0 \('http.*silent.png'\) cannot be read: ReadTimeout: timed out"):
        as_images(f"{address}/silent.png", timeout=0.1)
    with pytest.raises(ValueError, match=r"image 0 \('http.*'\) cannot be read: ConnectError"):
        as_images("http://127.0.0.1:9/picture.png")


def test_a_server_that_never_ends_is_left(address):
    for name, timeout in (("endless", 30), ("slow", 0.1)):
        started = time.monotonic()
        with pytest.raises(ValueError, match=r"the server sends more than 128 MiB, or takes over ten times"):
            as_images(f"{address}/{name}.png", timeout=timeout)
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr"])
def test_color_modes_become_rgb_as_the_library_does_it(mode):
    image = PICTURE.convert(mode)
    assert np.array_equal(np.asarray(as_images(image)[0]), np.asarray(image.convert("RGB")))


def test_a_palette_with_transparency_keeps_its_colors():
    image = PICTURE.quantize(16)
    image.info["transparency"] = bytes(range(16))
    assert np.array_equal(np.asarray(as_images(image)[0]), np.asarray(PICTURE.quantize(16).convert("RGB")))


@pytest.mark.parametrize("from_file", [True, False])
def test_sixteen_bits_are_scaled_and_not_clipped(from_file):
    image = Image.fromarray((PIXELS[..., 0].astype(np.uint16) << 8) + 7)
    read = as_images(encoded(image) if from_file else image)[0]
    assert np.array_equal(np.asarray(read), np.repeat(PIXELS[..., :1], 3, -1))
    as_integers = Image.fromarray(PIXELS[..., 0].astype(np.int32) << 8)
    assert np.array_equal(np.asarray(as_images(as_integers)[0]), np.asarray(read))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    turned = as_images(encoded(PICTURE, exif=exif))[0]
    assert turned.size == (PICTURE.size if orientation < 5 else PICTURE.size[::-1])
    upright = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]  # PIL's names of the turns
    assert np.array_equal(np.asarray(turned), PIXELS if upright is None else np.asarray(PICTURE.transpose(upright)))


def test_the_channel_axis_can_be_told():
    array = np.stack([PIXELS[:3, :, 0]] * 3, -1)  # (3, W, 3)
    assert as_images(array)[0].size == (80, 3)
    assert as_images(array, "channels_first")[0].size == (3, 80)
    assert as_images(torch.tensor(array))[0].size == (3, 80)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (encoded(PICTURE, "JPEG")[:400], "image 1 .*cannot be read.*[Tt]runcated"),
        (b"no image", "image 1 .*cannot be read.*UnidentifiedImageError"),
        (np.zeros((0, 5, 3), np.uint8), "image 1 has no pixels"),
        (Image.new("RGB", (0, 5)), "image 1 .*no pixels"),
        (np.zeros((5, 5, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros(5, np.uint8), "2 or 3 axes"),
        (np.full((5, 5, 3), -0.5), "image 1 holds values from -0.5"),
        (np.full((5, 5, 3), np.nan), "image 1 holds values from nan"),
        (np.full((5, 5, 3), 70000), "image 1 holds values"),
        ([PICTURE, PICTURE], "image 1 is a list of 2 images"),
    ],
)
def test_a_bad_image_is_named(image, told):
    with pytest.raises(ValueError, match=told):
        as_images([PICTURE, image])


def test_other_types_and_missing_files_are_told():
    with pytest.raises(TypeError, match="image 0: cannot use a int"):
        as_images([3])
    with pytest.raises(ValueError, match=r"image 0 .*a picture as a dict has .* this one has \['boxes', 'image'\]"):
        as_images({"image": PICTURE, "boxes": []})
    with pytest.raises(TypeError, match="image 0: pixel values are numbers"):
        as_images(np.full((5, 5, 3), "a"))
    with pytest.raises(FileNotFoundError, match=r"image 0: there is no file '.*nowhere\.png'"):
        as_images("nowhere.png")
    with pytest.raises(ValueError, match="empty list"):
        as_images([])


def test_a_decompression_bomb_names_the_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"limit of 2000 pixels .*MAX_IMAGE_PIXELS"):
        as_images(encoded(PICTURE))


@pytest.mark.parametrize("kind", ["numpy", "torch", "mode F"])
def test_floats_that_resizing_left_a_little_outside_are_clipped(kind):
    def picture(values):
        values = np.asarray(values, np.float32)
        if kind == "mode F":
            return np.asarray(as_image(Image.fromarray(values)))[..., 0]
        image = values if kind == "numpy" else torch.tensor(values)
        return np.asarray(as_image(image))[..., 0]

    assert picture([[0.0, 0.5], [1.0, 1.0001]]).tolist() == [[0, 128], [255, 255]]
    assert picture([[-0.05, 0.5], [0.25, 1.08]]).tolist() == [[0, 128], [64, 255]]
    sharp = Image.fromarray(np.kron(np.eye(4, dtype=np.float32), np.ones((8, 8), np.float32)))
    resized = np.asarray(sharp.resize((20, 20), Image.Resampling.BICUBIC))
    assert resized.max() > 1.0001 and resized.min() < 0, "the resize overshoots"
    assert picture(resized).max() == 255 and picture(resized).mean() > 50
    assert picture([[0.0, 2.0], [3.0, 200.0]]).tolist() == [[0, 2], [3, 200]]


@pytest.mark.parametrize(
    "values", [[0.0, 1.2], [0.5, 1.9], [-0.2, 0.5], [-0.05, 1.5], [-2.1, 2.6], [0.0, float("nan")]]
)
def test_floats_that_may_be_meant_either_way_are_refused(values):
    with pytest.raises(ValueError, match=r"image 0 holds (floats up to|values from)"):
        as_image(np.resize(np.float32(values), (2, 2, 1)))
