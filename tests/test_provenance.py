"""Hashes of what a student was made from: anybody can compute them again, and they change when a source does."""

import hashlib
import json

import numpy as np
import pytest

from distilltool import provenance, recipe

HASHES = [hashlib.sha256(bytes([number])).digest() for number in (3, 1, 2)]
VECTORS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def test_the_order_of_images_does_not_matter() -> None:
    rows = np.array([2, 0, 1])
    again = [HASHES[row] for row in rows]
    assert provenance.of_images(again) == provenance.of_images(HASHES) == provenance.of_images([*HASHES, HASHES[0]])
    assert provenance.of_answers(again, VECTORS[rows]) == provenance.of_answers(HASHES, VECTORS)


def test_another_source_has_another_hash() -> None:
    assert provenance.of_images(HASHES[1:]) != provenance.of_images(HASHES)
    other = VECTORS.copy()
    other[1, 2] = np.nextafter(other[1, 2], 2)
    exchanged = VECTORS[[1, 0, 2]]
    found = [provenance.of_answers(HASHES, one) for one in (VECTORS, other, exchanged)]
    assert len({*found, provenance.of_answers(HASHES[1:], VECTORS[1:])}) == 4
    plain, seeded = recipe.load("best"), recipe.load("best", ["seed=1"])
    assert provenance.of_recipe(plain.to_dict()) != provenance.of_recipe(seeded.to_dict())


@pytest.mark.parametrize(
    "values", [{"b": [1, 0.5], "a": {"d": None, "c": "ä"}}, {"a": {"c": "ä", "d": None}, "b": [1, 0.5]}]
)
def test_a_recipe_is_hashed_by_what_it_says(values: dict[str, object]) -> None:
    text = r'{"a":{"c":"\u00e4","d":null},"b":[1,0.5]}'
    assert json.loads(text) == values
    assert provenance.of_recipe(values) == hashlib.sha256(text.encode()).hexdigest()
