"""Index types that a gallery can be searched by: one file a type, its name is what `eval --index` takes.

Each file holds one function `name(vectors_GD, **settings) -> Index` that builds it on vectors of length 1, on as many
threads as faiss is told, the same from the same vectors, and `SETTINGS`, the least and the most of each setting that
may be typed. A setting that is not given follows from the gallery. What cannot be built on a gallery is a DistillError.

What users type has hyphens where a file's name has underscores: `ivf-pq` is `ivf_pq.py`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool import extensions
from distilltool.errors import DistillError, Exit


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One way of searching an index. prepare: makes the index search so; parameters of a single search would be refused
    where a program has loaded faiss.contrib.torch_utils, which replaces `search`."""

    settings: Mapping[str, int] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """A filled index of faiss. encode: vectors, (N, D) float32, as it takes them; settings: what it was built with;
    points: from the least effort to the most; complete: every vector is looked at, so that fetching more changes none
    that were fetched."""

    index: Any
    encode: Callable[[NDArray[np.float32]], NDArray[Any]]
    settings: Mapping[str, int]
    points: tuple[Point, ...]
    complete: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """An index type as asked for. text: what was typed of it."""

    text: str
    name: str
    settings: Mapping[str, int]


def names() -> list[str]:
    """What users may ask for."""
    return [name.replace("_", "-") for name in extensions.names(__name__)]


def build(wanted: Wanted, vectors_GD: NDArray[np.float32]) -> Index:
    """An index of a gallery; DistillError where it is too small for one."""
    function = extensions.find(__name__, "index type", wanted.name.replace("-", "_"))
    made: Index = function(vectors_GD, **wanted.settings)
    return made


def parse(text: str) -> tuple[Wanted, ...]:
    """Read `flat,ivf-pq,hnsw:m=32,ef=64`; what is faulty is a DistillError of one line."""
    specs = list[str]()
    for piece in (one.strip() for one in text.split(",")):
        if specs and "=" in piece and ":" not in piece:
            specs[-1] += f",{piece}"  # a further setting of the type before it
        else:
            specs.append(piece)
    return tuple(_wanted(spec, text) for spec in dict.fromkeys(specs))


def _wanted(spec: str, text: str) -> Wanted:
    name, colon, rest = spec.partition(":")
    if name not in names():
        raise DistillError(
            f"--index {text}: there is no index type {name!r}", f"use some of {', '.join(names())}", Exit.USAGE
        )
    limits: Mapping[str, tuple[int, int]] = import_module(f"{__name__}.{name.replace('-', '_')}").SETTINGS
    known = ", ".join(f"{key}={low}...{high}" for key, (low, high) in limits.items()) or "no settings"
    settings = dict[str, int]()
    for piece in rest.split(",") if colon else ():
        found = re.fullmatch(r"([a-z]+)=(\d{1,9})", piece)
        low, high = limits.get(found[1], (1, 0)) if found else (1, 0)
        if not found or found[1] in settings or not low <= int(found[2]) <= high:
            raise DistillError(f"--index {text}: {piece!r} is not understood", f"{name} takes {known}", Exit.USAGE)
        settings[found[1]] = int(found[2])
    return Wanted(text=spec, name=name, settings=settings)


def sweep(least: int, most: int, given: int | None) -> Sequence[int]:
    """What an effort is set to: what was given, or powers of two from the least to the most, and the most."""
    if given is not None:
        return [min(given, most)]
    return sorted({most, *(least << step for step in range(32) if least << step < most)})
