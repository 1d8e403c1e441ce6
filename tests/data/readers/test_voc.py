"""Pascal VOC: pixels that count from 1, and XML as many tools write it."""

import pytest
from reading import picture, read, regions, write

from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError


# As LabelImg writes it: tabs, path of the machine it ran on, every field.
LABELIMG = """<annotation>
	<folder>{folder}</folder>
	<filename>{filename}</filename>
	<path>C:\\Users\\me\\{filename}</path>
	<source>
		<database>Unknown</database>
	</source>
	<size>
		<width>{size[0]}</width>
		<height>{size[1]}</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>{objects}
</annotation>
"""
OBJECT = """
	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>{difficult}</difficult>
		<bndbox>
			<xmin>{box[0]}</xmin>
			<ymin>{box[1]}</ymin>
			<xmax>{box[2]}</xmax>
			<ymax>{box[3]}</ymax>
		</bndbox>
	</object>"""
BOX = (1, 1, 10, 20)


def voc_object(box=BOX, name="do_not_turn_r", difficult=0):
    return OBJECT.format(box=box, name=name, difficult=difficult)


def voc(root, objects, stem="a", filename="a.jpg", folder="images", size=(40, 30)):
    text = LABELIMG.format(folder=folder, filename=filename, size=size, objects="".join(objects))
    return write(root / "Annotations" / f"{stem}.xml", text)


@pytest.fixture
def root(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    return tmp_path


def test_pixels_count_from_one_unless_told_otherwise(root):
    voc(root, [voc_object(), voc_object((3.5, 4, 40, 30))])
    assert [region["box"] for region in regions(read("voc", root=root))] == [[0, 0, 10, 20], [2.5, 3, 40, 30]]
    assert regions(read("voc", root=root, one_based=False))[0]["box"] == [1, 1, 10, 20]


def test_a_class_name_is_caption_or_category(root):
    voc(root, [voc_object()])
    (record,) = read("voc", root=root)
    assert (record["task"], record["image_id"], record["width"], record["height"]) == ("caption", "a", 40, 30)
    assert record["regions"][0]["captions"] == ["do not turn r"]
    names = {"do_not_turn_r": "do not turn right"}
    (record,) = read("voc", root=root, task="recognition", names=names)
    assert record["task"] == "recognition" and record["regions"][0]["captions"] == []
    assert record["regions"][0]["category"] == "do not turn right"


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (5, 5, 5, 9), (9, 5, 5, 9)])
def test_a_box_without_area_costs_its_object_only(root, box):
    path = voc(root, [voc_object(), voc_object(box), voc_object()])
    with pytest.raises(RegionRecordError, match=r"a\.xml, image a, region a/1: bndbox .* is empty"):
        read("voc", root=root)
    report = ReadReport()
    kept = regions(read("voc", "skip", report, root=root))
    assert [region["region_id"] for region in kept] == ["a/0", "a/2"]
    assert (report.skipped_regions, report.skipped_records) == (1, 0) and str(path) in report.messages[0]


def test_boxes_outside_are_cut_or_refused(root):
    voc(root, [voc_object((1, 1, 41, 30)), voc_object((1, 1, 50, 30))])
    report = ReadReport()
    assert [r["box"] for r in regions(read("voc", "skip", report, root=root))] == [[0, 0, 40, 30]]
    assert (report.clipped_regions, report.skipped_regions) == (1, 1)
    assert [r["box"] for r in regions(read("voc", root=root, clip="image"))] == [[0, 0, 40, 30]] * 2


def test_difficult_objects_can_be_left_out_and_keep_their_numbers(root):
    voc(root, [voc_object(difficult=1), voc_object()])
    assert len(regions(read("voc", root=root))) == 2
    report = ReadReport()
    kept = regions(read("voc", report=report, root=root, difficult=False))
    assert [region["region_id"] for region in kept] == ["a/1"] and report.left_out["difficult objects"] == 1


@pytest.mark.parametrize(
    ("filename", "folder", "stem", "place"),
    [
        ("a.jpg", "train", "a", "JPEGImages/a.jpg"),
        ("a", "images", "a", "JPEGImages/a.jpg"),  # no suffix
        ("a.png", "images", "a", "JPEGImages/a.JPG"),  # converted since
        ("holiday.jpg", "images", "a", "images/a.jpeg"),  # renamed since
        ("b.jpg", "images", "a", "images/b.jpg"),  # the XML was renamed
        ("C:\\data\\a.jpg", "images", "x", "JPEGImages/a.jpg"),
        ("a.jpg", "day one", "a", "day one/a.jpg"),
        ("a.jpg", "images", "a", "Annotations/a.jpg"),  # beside
        ("a.jpg", "images", "sub/a", "JPEGImages/sub/a.jpg"),
    ],
)
def test_the_picture_is_found(tmp_path, filename, folder, stem, place):
    path = picture(tmp_path / place)
    voc(tmp_path, [voc_object()], stem, filename, folder)
    (record,) = read("voc", root=tmp_path)
    assert record["image"] == str(path) and record["image_id"] == stem


def test_no_name_in_a_file_leads_out_of_its_folder(tmp_path):
    picture(tmp_path / "secret.jpg")
    inner = tmp_path / "set"
    picture(inner / "JPEGImages" / "other.jpg")
    for filename, folder in (("../secret.jpg", "x"), (str(tmp_path / "secret.jpg"), "x"), ("secret.jpg", "..")):
        voc(inner, [voc_object()], "a", filename, folder)
        with pytest.raises(RegionRecordError, match="there is no picture"):
            read("voc", root=inner)


def test_two_pictures_for_one_file_need_a_word(root):
    voc(root, [voc_object()], stem="b")
    other = picture(root / "JPEGImages" / "b.jpg")
    with pytest.raises(RegionRecordError, match=r"filename means .*a\.jpg, its own name .*b\.jpg; choose with"):
        read("voc", root=root)
    assert read("voc", root=root, picture="stem")[0]["image"] == str(other)
    assert read("voc", root=root, picture="filename")[0]["image"].endswith("a.jpg")


def test_another_size_than_the_picture_needs_a_word(root):
    voc(root, [voc_object((1, 1, 40, 30))], size=(80, 60))
    with pytest.raises(RegionRecordError, match=r'says 80 x 60, the picture is 40 x 30; say size="picture"'):
        read("voc", root=root)
    assert regions(read("voc", root=root, size="picture"))[0]["box"] == [0, 0, 40, 30]
    assert regions(read("voc", root=root, size="scale"))[0]["box"] == [0, 0, 20, 15]
    voc(root, [voc_object()], size=(0, 0))
    with pytest.raises(RegionRecordError, match="says 0 x 0"):
        read("voc", root=root, size="scale")


def test_the_size_is_that_of_the_upright_picture(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "images" / "a.jpg", (30, 40), exif=exif)
    voc(tmp_path, [voc_object()], size=(40, 30))
    assert read("voc", root=tmp_path)[0]["width"] == 40


def test_missing_and_broken_files_are_named_and_skipped(root):
    voc(root, [voc_object()])
    voc(root, [voc_object()], stem="b", filename="gone.jpg")
    write(root / "Annotations" / "c.xml", "<annotation><object>")
    write(root / "Annotations" / "d.xml", "<labels/>")
    write(root / "JPEGImages" / "e.jpg", "no picture")
    voc(root, [voc_object()], stem="e", filename="e.jpg")
    report = ReadReport()
    assert [record["image_id"] for record in read("voc", "skip", report, root=root)] == ["a"]
    expected = (
        "no picture 'gone.jpg' or b.* in",
        "c.xml cannot be read as XML",
        "expected 'annotation'",
        "e.jpg: the",
    )
    assert all(text in message for text, message in zip(expected, report.messages, strict=True))
    with pytest.raises(RegionRecordError, match=r"gone\.jpg"):
        read("voc", root=root)


def test_objects_without_a_usable_box_are_named(root):
    voc(root, [voc_object(("?", 1, 5, 5)), "<object><name>x</name></object>", voc_object(name=""), voc_object()])
    report = ReadReport()
    assert len(regions(read("voc", "skip", report, root=root))) == 1
    expected = ("a/0: bndbox/xmin is '?'", "a/1: there is no bndbox/xmin", "a/2: a text is blank")
    assert all(text in message for text, message in zip(expected, report.messages, strict=True))


def test_parts_of_an_object_are_no_objects(root):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
    voc(root, [voc_object().replace("</object>", part + "</object>")])
    assert [region["category"] for region in regions(read("voc", root=root))] == ["do not turn r"]


@pytest.mark.parametrize(
    "declared",
    [
        '<!DOCTYPE a [<!ENTITY e "x"><!ENTITY f "&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;">]>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
    ],
)
def test_a_document_type_is_refused(root, declared):
    path = voc(root, [voc_object(name="&e;")])
    path.write_text(declared + path.read_text())
    with pytest.raises(RegionRecordError, match=r"a\.xml: it declares a document type"):
        read("voc", root=root)


def test_a_split_is_read_in_its_order(root):
    for stem in "bc":
        picture(root / "JPEGImages" / f"{stem}.jpg")
    for stem in "abc":
        voc(root, [voc_object()], stem, f"{stem}.jpg")
    assert [record["image_id"] for record in read("voc", root=root)] == ["a", "b", "c"]
    write(root / "ImageSets" / "Main" / "train.txt", "c\na\n")
    write(root / "ImageSets" / "Main" / "cat_val.txt", "a  1\nb -1\nc  0\n")
    assert [record["image_id"] for record in read("voc", root=root, split="train")] == ["c", "a"]
    assert [record["image_id"] for record in read("voc", root=root, split="cat_val")] == ["a", "c"]
    for split in ("test", "../../train"):
        with pytest.raises(ValueError, match="split: there is no file"):
            read("voc", root=root, split=split)


def test_unicode_names_and_an_empty_image(root):
    voc(root, [voc_object(name="猫_ñ")])
    picture(root / "JPEGImages" / "b.png")
    voc(root, [], stem="b", filename="b.png")
    first, second = read("voc", root=root)
    assert first["regions"][0]["captions"] == ["猫 ñ"] and second["regions"] == []


def test_options_and_folders_are_checked(root):
    for options, message in (
        ({"size": "guess"}, "size is 'guess'"),
        ({"clip": "all"}, "clip is 'all'"),
        ({"picture": "name"}, "picture is 'name'"),
        ({}, "has no XML files"),
        ({"annotations": root / "gone"}, "is not a directory"),
    ):
        with pytest.raises(ValueError, match=message):
            read("voc", root=root, **options)


def test_real_sets_are_read_whole(shared):
    assert len(regions(read("voc", root=shared("data/road_signs_voc")))) == 146
    assert len(regions(read("voc", root=shared("data/playing_cards_voc")))) == 272
    report = ReadReport()
    cells = read("voc", "skip", report, root=shared("data/blood_cells_voc"))
    assert len(cells) == 120 and len(regions(cells)) == 1580 and report.skipped_regions == 2
