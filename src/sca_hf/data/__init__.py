"""Data sets of regions: the record, readers of the community's formats, mixing, splitting."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports


if TYPE_CHECKING:
    from .loading import READERS, load_regions, load_spec, parse_spec
    from .mixing import hold_out, mix_regions
    from .region import Region, RegionRecord, RegionRecordError, region_features
    from .writers import WRITERS, write_regions
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            ".loading": ["READERS", "load_regions", "load_spec", "parse_spec"],
            ".mixing": ["hold_out", "mix_regions"],
            ".region": ["Region", "RegionRecord", "RegionRecordError", "region_features"],
            ".writers": ["WRITERS", "write_regions"],
        },
    )


__all__ = [
    "READERS",
    "load_regions",
    "load_spec",
    "parse_spec",
    "mix_regions",
    "hold_out",
    "Region",
    "RegionRecord",
    "RegionRecordError",
    "region_features",
    "WRITERS",
    "write_regions",
]
