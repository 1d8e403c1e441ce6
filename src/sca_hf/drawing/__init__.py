"""Pictures of what the model said, and of what it learns from."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports


if TYPE_CHECKING:
    from .overlay import DrawnRegion, color_of, draw_regions
    from .sheet import SheetTile, cut_region, draw_sheet
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            ".overlay": ["DrawnRegion", "color_of", "draw_regions"],
            ".sheet": ["SheetTile", "cut_region", "draw_sheet"],
        },
    )


__all__ = ["DrawnRegion", "SheetTile", "color_of", "cut_region", "draw_regions", "draw_sheet"]
