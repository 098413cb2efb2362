"""Which images to ask about when the budget does not cover them all: one file a way, its name is the name.

Each file holds one function `name(photos, seed) -> list[Photo]`: the photos in the order in which to ask.
"""
