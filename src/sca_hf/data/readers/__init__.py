"""Readers: community formats of region data, one file each, as plain generators of region records."""
