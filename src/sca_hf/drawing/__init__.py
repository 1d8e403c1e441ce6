"""Pictures of what the model said."""

from .overlay import DrawnRegion, colour_of, draw_regions


__all__ = ["DrawnRegion", "colour_of", "draw_regions"]
