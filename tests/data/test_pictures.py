"""Picture files, checked when a set is opened: heads, orientations, files that are cut short, bad ones left out."""

import io
import json
import logging

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from sca_hf.cli import main
from sca_hf.data import loading
from sca_hf.data.inspection import check_data
from sca_hf.data.loading import load_regions
from sca_hf.data.pictures import PictureHead, read_head
from sca_hf.data.region import RegionRecordError, record_image
from sca_hf.processing.masks_sca import decode_rle, encode_rle


def noise(size=(40, 30), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def saved(format, image=None, **options):
    file = io.BytesIO()
    (image or noise()).save(file, format, **options)
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x927C] = b"\0" * 6000  # as long as a maker's notes are
    return tags


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_a_head_says_what_pillow_says(tmp_path, format, orientation):
    options = {} if orientation is None or format in ("GIF", "BMP") else {"exif": exif(orientation)}
    content = saved(format, **options)
    (tmp_path / "a").write_bytes(content)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).size
    for picture in (content, tmp_path / "a", str(tmp_path / "a")):
        head = read_head(picture)
        assert head.size == upright and (head.stored == (40, 30) or format == "TIFF")  # which Pillow turns itself


def test_less_common_heads_are_read_too():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert read_head(saved("PNG", pnginfo=info)).size == (30, 40)
    long = saved("JPEG", noise((400, 300)), progressive=True, icc_profile=b"p" * 70000, comment=b"c" * 5000)
    assert read_head(long) == PictureHead((400, 300))
    assert read_head(saved("JPEG", noise().convert("CMYK"))).size == (40, 30)
    # Some cameras write more behind the picture.
    assert read_head(saved("JPEG") + b"\0" * 1000).size == (40, 30)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("left", [0.95, 0.5, 0.05, 0])
def test_a_file_that_is_cut_short_is_named(tmp_path, format, left):
    content = saved(format, noise((200, 150)))
    (tmp_path / "short.img").write_bytes(content[: int(len(content) * left)])
    with pytest.raises(RegionRecordError, match=r"short\.img: the picture cannot be read"):
        read_head(tmp_path / "short.img")


def coco(folder, names, size=(40, 30), **row):
    values = {
        "images": [{"id": k, "file_name": name, "width": size[0], "height": size[1]} for k, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [4, 3, 20, 10], **row} for k in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "a.json").write_text(json.dumps(values))
    return {"annotations": folder / "a.json", "images": folder}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_regions_in_stored_pixels_are_turned_with_their_picture(tmp_path, orientation):
    stored = noise()
    stored.save(tmp_path / "a.png", exif=exif(orientation))
    mask = np.zeros((30, 40), bool)
    mask[3:13, 4:24] = True
    mask[3:5, 4:10] = False
    options = coco(tmp_path, ["a.png"], segmentation=encode_rle(mask))
    (record,) = load_regions("coco", **options)
    turned = Image.fromarray(mask.astype(np.uint8))
    turned.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned)) > 0
    assert (record["width"], record["height"]) == (30, 40) == record["image"].size
    (region,) = record["regions"]
    assert np.array_equal(decode_rle(region["mask"]), expected)
    rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
    assert region["box"] == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_boxes_outside_of_the_stored_size_are_upright(tmp_path):
    noise().save(tmp_path / "a.jpg", exif=exif(6))
    options = coco(tmp_path, ["a.jpg"], bbox=[2, 20, 10, 18])
    report = check_data({"format": "coco", **options})
    (record,) = load_regions("coco", **options)
    assert record["regions"][0]["box"] == [2, 20, 12, 38] and (record["width"], record["height"]) == (30, 40)
    assert "taken as upright" in report.read.notes[0] and not report.bad
    with pytest.raises(RegionRecordError, match='clip="rounding"'):
        load_regions("coco", clip="image", **options)


def test_another_size_than_the_pictures_is_refused(tmp_path):
    noise().save(tmp_path / "a.jpg")
    with pytest.raises(RegionRecordError, match=r"image 0: the upright picture is 40 x 30, .* of one of 80 x 60"):
        load_regions("coco", **coco(tmp_path, ["a.jpg"], (80, 60)))
    noise((2, 2000)).save(tmp_path / "b.jpg")
    with pytest.raises(RegionRecordError, match=r"picture of 2 x 2000 is too narrow .*crop it"):
        load_regions("coco", **coco(tmp_path, ["b.jpg"], (2, 2000), bbox=[0, 3, 2, 90]))


def test_a_voc_file_with_the_stored_size_is_turned_too(tmp_path):
    noise().save(tmp_path / "a.jpg", exif=exif(6))
    box = "<bndbox><xmin>5</xmin><ymin>4</ymin><xmax>24</xmax><ymax>13</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>"
        f"<object><name>cat</name>{box}</object></annotation>"
    )
    (record,) = load_regions("voc", root=tmp_path)
    assert record["regions"][0]["box"] == [17, 4, 27, 24] and record["width"] == 30


@pytest.fixture
def downloads(tmp_path):
    """Good pictures, one that is cut short, one whose middle is damaged, which shows in decoding only, one HEIC."""
    for number in range(6):
        noise(seed=number).save(tmp_path / f"good{number}.png")
    (tmp_path / "short.jpg").write_bytes(saved("JPEG")[:600])
    damaged = bytearray(saved("PNG", noise((40, 30), 9)))
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.png").write_bytes(bytes(damaged))
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 99)
    names = [*(f"good{number}.png" for number in range(3)), "short.jpg", "damaged.png", "phone.heic"]
    return coco(tmp_path, [*names, *(f"good{number}.png" for number in range(3, 6))])


def test_skip_means_pictures_too(downloads, caplog):
    for streaming in (False, True):
        rows = load_regions("coco", on_error="skip", streaming=streaming, **downloads)
        assert [row["image_id"] for row in rows] == ["0", "1", "2", "6", "7", "8"]
    assert "skipped 3 bad images" in caplog.text
    (report,) = [report for report in loading.OPENED if report.source.endswith(str(downloads["annotations"]))]
    text = "\n".join(report.skipped())
    assert all(name in text for name in ("short.jpg", "damaged.png", "phone.heic")) and "3 images" in text
    with pytest.raises(RegionRecordError, match=r"image 3: .*short\.jpg: the picture cannot be read"):
        load_regions("coco", **downloads)


def test_check_names_what_cannot_be_read(downloads, capsys):
    spec = f"coco:annotations={downloads['annotations']}"
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", spec, "--images"])
    told = capsys.readouterr().out
    assert all(name in told for name in ("short.jpg", "damaged.png", "phone.heic"))


def test_a_picture_that_goes_bad_later_is_named(tmp_path):
    noise().save(tmp_path / "a.png")
    rows = loading.leave_undecoded(load_regions("coco", **coco(tmp_path, ["a.png"])))
    (tmp_path / "a.png").write_bytes(b"gone")
    with pytest.raises(RegionRecordError, match=r"image 0: .*a\.png"):
        record_image(rows[0])


def test_predict_leaves_out_and_lists(downloads, tmp_path, capsys):
    spec = f"coco:annotations={downloads['annotations']},on_error=skip"
    output = tmp_path / "said.jsonl"
    assert main(["predict", "--data", spec, "--output", str(output), "--max-new-tokens", "2"]) == 0
    assert len(output.read_text().splitlines()) == 6
    told = capsys.readouterr()
    assert "left out as bad: 3 images" in told.err and "damaged.png" in told.err


def test_training_leaves_out_and_lists(downloads, tmp_path, capsys, caplog):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{from: sca-tiny}}\noutput: {tmp_path / 'run'}\n"
        f"data:\n  train: {{format: coco, annotations: {downloads['annotations']}, on_error: skip}}\n"
        f"  eval: {{format: coco, annotations: {downloads['annotations']}, on_error: skip}}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 2, per_device_eval_batch_size: 2, use_cpu: true,"
        " report_to: none, save_strategy: 'no', logging_steps: 1}\n"
    )
    with caplog.at_level(logging.WARNING):
        assert main(["train", str(recipe)]) == 0
    told = capsys.readouterr()
    assert "left out as bad: 3 images" in told.err and "short.jpg" in told.err
