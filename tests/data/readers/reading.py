"""What the tests of the readers share."""

from PIL import Image

from sca_hf.data.loading import RecordSource
from sca_hf.data.read_report import ReadReport


def read(format, on_error="raise", report=None, **options):
    """All checked records of a data set."""
    source = RecordSource(format, options, on_error, keep_empty=True)
    return list(source.records(report if report is not None else ReadReport()))


def regions(records):
    return [region for record in records for region in record["regions"]]


def picture(path, size=(40, 30), **options):
    """Writes a picture, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path, **options)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
