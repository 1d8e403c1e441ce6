"""A model for photographs: its data and its measurement, neither part of the wheel."""
