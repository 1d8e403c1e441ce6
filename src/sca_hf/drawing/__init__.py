"""Pictures of what the model said, and of what it learns from."""

from .overlay import DrawnRegion, color_of, draw_regions
from .sheet import SheetTile, cut_region, draw_sheet


__all__ = ["DrawnRegion", "SheetTile", "color_of", "cut_region", "draw_regions", "draw_sheet"]
