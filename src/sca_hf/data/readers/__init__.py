"""Readers: one generator function per community format, each yielding region records as plain dicts.

A reader is called `read_<format>(paths..., task="caption", names=None, ...)` and yields, in an order that depends on
the files alone, mappings with the fields of `data.region.RegionRecord`; it opens no picture unless the format does not
say the picture's size. It does not validate: `data.read_report.check_records` does, and says what else a reader may
yield: an error in place of a record or a region, the `source` to name in errors. Images without regions are yielded
too; the loader drops them unless asked to keep them. One more field of a record is for the loader alone: `left_out`,
what the reader left out of the image by its own rules, as `{"crowd annotations": 2}`. A file that cannot be understood
as a whole is a `ValueError`.
"""
