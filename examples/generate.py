"""Draw a small synthetic photo set for instance retrieval: the same things under many views.

Every *instance* is a procedurally made thing (shape, parts, texture, label); every *view* is one
photograph of it with its own camera, light, background, occluders and JPEG quality. Instances come
in groups of look-alikes that share shape, palette and base pattern, so colour alone cannot tell
them apart. Needs numpy and Pillow only::

    python examples/generate.py --out examples
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[Any]  # float32 unless a docstring says otherwise
Rng = np.random.Generator

VERSION = 1
SALT = 20240607
GROUP = 4  # instances 4k .. 4k+3 are look-alikes of one another
TRAIN_IDS = range(0, 400)  # the unlabelled demonstration photographs
TRAIN_VIEWS = range(0, 6)
UNSEEN_IDS = range(10_000, 10_060)  # never shown to the teacher or to a student
UNSEEN_VIEWS = range(0, 8)
DISTRACTOR_IDS = range(20_000, 20_048)  # only ever appear as clutter
SIZES = ((160, 128), (144, 128), (160, 144), (144, 144), (160, 160), (128, 144), (128, 160))
TEX_W, TEX_H = 256, 128

PALETTES = tuple(
    tuple(p.split())
    for p in (
        "264653 2a9d8f e9c46a f4a261 e76f51",
        "f1faee a8dadc 457b9d 1d3557 e63946",
        "606c38 283618 fefae0 dda15e bc6c25",
        "cdb4db ffc8dd bde0fe a2d2ff 5a4a78",
        "003049 d62828 f77f00 fcbf49 eae2b7",
        "edede9 d6ccc2 b08968 7f5539 3d2b1f",
        "0b3c49 731963 fffdfd e7e247 3d3522",
        "2d6a4f 52b788 d8f3dc 1b4332 ffb703",
        "22223b 4a4e69 9a8c98 c9ada7 f2e9e4",
        "8ecae6 219ebc 023047 ffb703 fb8500",
    )
)


def _rng(*keys: int) -> Rng:
    """Give the one random generator that belongs to these integer keys."""
    return np.random.default_rng([SALT, *keys])


def _hex(code: str) -> Array:
    """Turn an RRGGBB code into a float colour (3,) in 0..1."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


# --- fields and patterns ---------------------------------------------------------------------


def _resized(field: Array, width: int, height: int) -> Array:
    """Enlarge a small float field smoothly to (height, width)."""
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC))


def _fractal(rng: Rng, width: int, height: int, base: float = 3, octaves: int = 4) -> Array:
    """Make smooth multi-scale noise (height, width) with mean near 0.5, mostly in 0..1."""
    total = np.zeros((height, width), np.float32)
    for k in range(octaves):
        cells = int(base * 2**k)
        if cells > min(width, height):
            break
        total += _resized(rng.random((cells + 1, cells + 2), np.float32) - 0.5, width, height) * 0.62**k
    return total * 0.9 + 0.5


def _grid(width: int, height: int) -> tuple[Array, Array]:
    """Give pixel coordinates x and y (height, width) in units of the height."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / np.float32(height)
    return x, y


def _stripes(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of parallel bars of two widths."""
    a = rng.choice([0.0, math.pi / 2, rng.uniform(0.3, 1.2), -rng.uniform(0.3, 1.2)])
    t: Array = (x * math.cos(a) + y * math.sin(a)) * rng.uniform(2.5, 7) + rng.random()
    w = rng.uniform(0.3, 0.6)
    return (t % 1 > w) + ((t % 2) > 2 - w / 2)


def _checks(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of a chequered cloth."""
    f, g = rng.uniform(3, 7, 2)
    index: Array = (x * f % 1 > 0.5) * 1 + (y * g % 1 > 0.5) * 1
    return index


def _dots(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of discs on a staggered lattice."""
    f, r = rng.uniform(3, 6.5), rng.uniform(0.2, 0.38)
    row = np.floor(y * f)
    u, v = (x * f + 0.5 * (row % 2)) % 1 - 0.5, y * f % 1 - 0.5
    d = np.hypot(u, v)
    return (d < r) * 1 + (d < r * 0.5) * rng.integers(0, 2)


def _camouflage(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of irregular cloudy patches."""
    n = _fractal(rng, x.shape[1], x.shape[0], int(rng.integers(3, 7)), 3)
    return (n > 0.45) * 1 + (n > 0.6)


def _waves(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of wavy or zigzag bands."""
    f, a = rng.uniform(2, 5), rng.uniform(0.05, 0.16)
    s = np.sin(x * f * 2 * math.pi) if rng.random() < 0.5 else np.abs(x * f % 1 - 0.5) * 4 - 1
    t = (y + a * s) * rng.uniform(2.5, 6)
    return np.floor(t) % 3


def _cells(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of a mosaic of nearest-seed cells."""
    n = int(rng.integers(18, 48))
    sx, sy = rng.random((2, n)) * np.array([[x.max()], [1.0]])
    d = (x[::2, ::2, None] - sx.astype(np.float32)) ** 2 + (y[::2, ::2, None] - sy.astype(np.float32)) ** 2
    index: Array = rng.integers(0, 3, n)[d.argmin(2)]
    return index.repeat(2, 0).repeat(2, 1)[: x.shape[0], : x.shape[1]]


def _rings(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of rings around an off-centre point."""
    d = np.hypot(x - rng.uniform(0.2, 0.8) * x.max(), y - rng.random())
    index: Array = np.floor(d * rng.uniform(5, 10)) % 3
    return index


def _weave(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of crossing bands, like a tartan."""
    f, g = rng.uniform(1.5, 4, 2)
    index: Array = (x * f % 1 < 0.3) * 1 + (y * g % 1 < 0.3) * 1
    return index


def _plain(rng: Rng, x: Array, y: Array) -> Array:
    """Index map of one colour with a single band."""
    c, w = rng.uniform(0.1, 0.9), rng.uniform(0.03, 0.12)
    return (np.abs(y - c) < w) * 1


PATTERNS: tuple[Callable[[Rng, Array, Array], Array], ...] = (
    _stripes, _checks, _dots, _camouflage, _waves, _cells, _rings, _weave, _plain,
)  # fmt: skip


def _painted(index: Array, colours: Array, noise: Array) -> Array:
    """Colour an index map (H, W) with colours (>=3, 3) and a little surface noise: (H, W, 3)."""
    lookup = colours[np.asarray(index, np.int64) % len(colours)]
    return np.clip(lookup * (0.82 + 0.36 * noise[..., None]), 0, 1)


# --- labels and emblems ----------------------------------------------------------------------


def _ink(colour: Array) -> tuple[int, int, int]:
    """Turn a float colour (3,) into a Pillow colour."""
    r, g, b = (int(round(float(c) * 255)) for c in colour)
    return r, g, b


def _radial(rng: Rng, cx: float, cy: float, r: float, spin: float = 0.0) -> list[tuple[float, float]]:
    """Give the outline of a random star, gear, petal or blob around (cx, cy) in pixels."""
    kind, n = rng.integers(0, 4), int(rng.integers(3, 9))
    a = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    if kind == 0:
        radius = 1 - rng.uniform(0.35, 0.6) * np.abs((a * n / (2 * math.pi)) % 1 - 0.5) * 2
    elif kind == 1:
        radius = np.where((a * n / (2 * math.pi)) % 1 < 0.5, 1, rng.uniform(0.6, 0.75))
    elif kind == 2:
        radius = 0.68 + 0.32 * np.cos(n * a)
    else:
        k, p = rng.uniform(0.05, 0.2, 3), rng.uniform(0, 6.28, 3)
        radius = 0.75 + k[0] * np.cos(a + p[0]) + k[1] * np.cos(2 * a + p[1]) + k[2] * np.cos(3 * a + p[2])
    return [(float(cx + r * q * math.sin(t + spin)), float(cy - r * q * math.cos(t + spin)))
            for t, q in zip(a, radius, strict=True)]  # fmt: skip


def _emblem(draw: ImageDraw.ImageDraw, rng: Rng, cx: float, cy: float, r: float, inks: Array) -> None:
    """Draw one sign of radius r pixels: an outline shape, a ring, or a mirrored cell grid."""
    a, b = _ink(inks[0]), _ink(inks[1])
    style = rng.integers(0, 4)
    if style == 0:
        draw.polygon(_radial(rng, cx, cy, r), fill=a)
        draw.polygon(_radial(rng, cx, cy, r * 0.5), fill=b)
    elif style == 1:
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=a)
        draw.polygon(_radial(rng, cx, cy, r * 0.85), fill=b)
    elif style == 2:
        for k in range(3):
            q = r * (1 - 0.33 * k)
            draw.polygon(_radial(rng, cx, cy, q) if k == 1 else _square(cx, cy, q), fill=(a, b, a)[k])
    else:
        draw.rectangle((cx - r, cy - r, cx + r, cy + r), fill=b)
        cell = r * 2 / 5
        for row, col in zip(*np.nonzero(rng.random((5, 3)) < 0.55), strict=True):
            for c in {int(col), 4 - int(col)}:
                x0, y0 = cx - r + c * cell, cy - r + row * cell
                draw.rectangle((x0, y0, x0 + cell, y0 + cell), fill=a)


def _square(cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    """Give the corners of a square standing on its tip."""
    return [(cx, cy - r), (cx + r, cy), (cx, cy + r), (cx - r, cy)]


def _writing(draw: ImageDraw.ImageDraw, rng: Rng, box: tuple[float, float, float, float], ink: Array) -> None:
    """Fill a box (left, top, right, bottom) with a row of invented letters."""
    left, top, right, bottom = box
    n = int(rng.integers(3, 7))
    w, thick = (right - left) / n, max(2, int((bottom - top) / 5))
    for k in range(n):
        x0, x1 = left + k * w + 1, left + (k + 0.8) * w
        xs, ys = (x0, (x0 + x1) / 2, x1), (top, (top + bottom) / 2, bottom)
        points = [(xs[i], ys[j]) for i, j in rng.integers(0, 3, (4, 2))]
        draw.line(points, fill=_ink(ink), width=thick, joint="curve")


def _label(draw: ImageDraw.ImageDraw, rng: Rng, cx: float, cy: float, inks: Array) -> None:
    """Draw a paper label with an emblem and writing, centred at (cx, cy) on the texture."""
    w, h = rng.uniform(28, 48), rng.uniform(28, 46)
    box = (cx - w, cy - h, cx + w, cy + h)
    shape = rng.integers(0, 3)
    if shape == 0:
        draw.rectangle(box, fill=_ink(inks[0]), outline=_ink(inks[2]), width=3)
    elif shape == 1:
        draw.ellipse(box, fill=_ink(inks[0]), outline=_ink(inks[2]), width=3)
    else:
        draw.rounded_rectangle(box, radius=12, fill=_ink(inks[0]))
    up = 1 if rng.random() < 0.5 else -1
    _emblem(draw, rng, cx + rng.uniform(-6, 6), cy - up * h * 0.3, h * rng.uniform(0.42, 0.55), inks[[1, 2]])
    _writing(draw, rng, (cx - w * 0.75, cy + up * h * 0.5 - 7, cx + w * 0.75, cy + up * h * 0.5 + 7), inks[2])


def _marked(base: Array, rng: Rng, colours: Array, mark: int, front: bool) -> Array:
    """Put the marks of one instance on a pattern texture (TEX_H, TEX_W, 3)."""
    picture = Image.fromarray((base * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    inks = colours[rng.permutation(len(colours))]
    for cx in (128.0,) if front else (48.0, 128.0, 208.0):
        cy = rng.uniform(50, 78)
        if front and mark == 0:
            _label(draw, rng, cx, cy, inks)
        elif front and mark == 1:
            _emblem(draw, rng, cx, cy, rng.uniform(28, 42), inks)
        else:
            for _ in range(int(rng.integers(2, 5))):
                dx, dy = rng.uniform(-42, 42), rng.uniform(-38, 38)
                _emblem(draw, rng, cx + dx, 64 + dy, rng.uniform(9, 18), inks)
    if rng.random() < 0.4:
        top = rng.choice([6.0, 104.0])
        draw.rectangle((0, top, TEX_W, top + rng.uniform(8, 16)), fill=_ink(inks[3]))
    return np.asarray(picture, np.float32) / 255


# --- things: textured convex parts -----------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One convex solid: box, frustum, ellipsoid or cut-out plate, with its three texture layers."""

    kind: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    layers: tuple[int, int, int] = (0, 1, 2)  # front or wall, side, cap
    taper: float = 1.0  # frustum: top radius over bottom radius
    tilt: float = 0.0  # turn about the viewing axis, radians


@dataclass(frozen=True)
class Thing:
    """One instance: its solids, texture layers (4, TEX_H, TEX_W, 3), plate outline and gloss."""

    parts: tuple[Part, ...]
    textures: Array
    mask: NDArray[np.bool_]
    gloss: float


def _carton(s: Array) -> list[Part]:
    """A plain box."""
    return [Part("box", (0, 0, 0), (0.5 + 0.4 * s[0], 0.6 + 0.4 * s[1], 0.25 + 0.4 * s[2]))]


def _tin(s: Array) -> list[Part]:
    """A cylindrical tin with two rims."""
    r, h = 0.5 + 0.25 * s[0], 0.5 + 0.5 * s[1]
    rims = [Part("frustum", (0, y, 0), (r * 1.05, 0.05, r * 1.05), (3, 3, 2)) for y in (-h, h)]
    return [Part("frustum", (0, 0, 0), (r, h, r)), *rims]


def _bottle(s: Array) -> list[Part]:
    """A bottle: body, shoulder, neck and cap."""
    r, h, n = 0.38 + 0.2 * s[0], 0.5 + 0.2 * s[1], 0.12 + 0.1 * s[2]
    return [
        Part("frustum", (0, -0.3, 0), (r, h, r)),
        Part("frustum", (0, h - 0.1, 0), (r, 0.2, r), (3, 3, 3), n / r),
        Part("frustum", (0, h + 0.25, 0), (n, 0.2, n), (3, 3, 3)),
        Part("frustum", (0, h + 0.45, 0), (n * 1.25, 0.1, n * 1.25), (2, 2, 2)),
    ]


def _mug(s: Array) -> list[Part]:
    """A mug with a square handle at one side."""
    r, h, e = 0.5 + 0.2 * s[0], 0.55 + 0.25 * s[1], 0.16 + 0.2 * s[2]
    bars = [Part("box", (r + e / 2, y, 0), (e / 2 + 0.1, 0.08, 0.1), (2, 2, 2)) for y in (-h / 2, h / 2)]
    return [
        Part("frustum", (0, 0, 0), (r, h, r), (0, 1, 3), 0.85 + 0.35 * s[3]),
        Part("box", (r + e, 0, 0), (0.08, h / 2 + 0.08, 0.1), (2, 2, 2)),
        *bars,
    ]


def _ball(s: Array) -> list[Part]:
    """A ball, egg or lozenge on a foot."""
    r, h = 0.65 + 0.3 * s[0], 0.6 + 0.4 * s[1]
    return [
        Part("ellipsoid", (0, 0, 0), (r, h, 0.6 + 0.2 * s[2])),
        Part("frustum", (0, -h, 0), (0.35, 0.12, 0.35), (2, 2, 2), 0.5 + 0.4 * s[3]),
    ]


def _plaque(s: Array) -> list[Part]:
    """A cut-out board."""
    return [Part("plate", (0, 0, 0), (0.75 + 0.25 * s[0], 0.75 + 0.25 * s[1], 0.08 + 0.06 * s[2]))]


def _figure(s: Array) -> list[Part]:
    """A toy figure: body, head, arms and hat."""
    w, h = 0.38 + 0.2 * s[0], 0.42 + 0.16 * s[1]
    arm = 0.3 + 0.9 * s[2]
    limb = Part("ellipsoid", (0, 0.1, 0), (0.12, 0.42, 0.12), (3, 3, 3))
    arms = [replace(limb, centre=(k * (w + 0.1), 0.1, 0), tilt=k * arm) for k in (-1, 1)]
    return [
        Part("frustum", (0, -0.3, 0), (w, h, w * 0.8), taper=0.6 + 0.3 * s[3]),
        Part("ellipsoid", (0, h - 0.02, 0), (0.33, 0.32, 0.33), (1, 1, 1)),
        Part("frustum", (0, h + 0.33, 0), (0.3, 0.12 + 0.2 * s[4], 0.3), (2, 2, 2), 0.1 + 0.8 * s[5]),
        *arms,
    ]


def _vase(s: Array) -> list[Part]:
    """A vase of three stacked frusta."""
    foot, belly, neck, lip = 0.3 + 0.15 * s[0], 0.5 + 0.25 * s[1], 0.2 + 0.2 * s[2], 0.3 + 0.25 * s[3]
    return [
        Part("frustum", (0, -0.55, 0), (foot, 0.35, foot), (1, 1, 2), belly / foot),
        Part("frustum", (0, 0.15, 0), (belly, 0.35, belly), (0, 0, 2), neck / belly),
        Part("frustum", (0, 0.65, 0), (neck, 0.15, neck), (3, 3, 2), lip / neck),
    ]


def _lamp(s: Array) -> list[Part]:
    """A table lamp: shade, stem and foot."""
    r = 0.55 + 0.25 * s[0]
    return [
        Part("frustum", (0, 0.35, 0), (r, 0.35 + 0.15 * s[1], r), taper=0.35 + 0.5 * s[2]),
        Part("frustum", (0, -0.35, 0), (0.09 + 0.1 * s[3],) + (0.4, 0.09 + 0.1 * s[3]), (3, 3, 3)),
        Part("frustum", (0, -0.78, 0), (0.4 + 0.15 * s[4], 0.1, 0.4 + 0.15 * s[4]), (1, 1, 2), 0.7),
    ]


def _truck(s: Array) -> list[Part]:
    """A toy lorry: load, cab and wheels, seen from its side."""
    load, high = 0.5 + 0.15 * s[0], 0.35 + 0.2 * s[1]
    base = -0.35
    spots = (-0.55, 0.05, 0.6)
    wheels = [Part("ellipsoid", (x, base - 0.05, 0.36), (0.2, 0.2, 0.1), (2, 2, 2)) for x in spots]
    return [
        Part("box", (-0.25, base + high, 0), (load, high, 0.36)),
        Part("box", (load, base + high * 0.7, 0), (0.25, high * (0.6 + 0.3 * s[2]), 0.34), (1, 3, 2)),
        *wheels,
    ]


BUILDERS: tuple[Callable[[Array], list[Part]], ...] = (
    _carton, _tin, _bottle, _mug, _ball, _plaque, _figure, _vase, _lamp, _truck,
)  # fmt: skip


def _turn_z(a: float) -> Array:
    """Rotation matrix (3, 3) about z by a radians."""
    c, s = math.cos(a), math.sin(a)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


def _normalised(parts: list[Part]) -> tuple[Part, ...]:
    """Centre the parts and scale them into the unit sphere."""
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1)
    corners = [_turn_z(p.tilt) @ (signs * np.array(p.half)[:, None] * 0.92) for p in parts]
    cloud = np.concatenate([c + np.array(p.centre)[:, None] for c, p in zip(corners, parts, strict=True)], 1)
    mid = (cloud.min(1) + cloud.max(1)) / 2
    scale = 1 / np.linalg.norm(cloud - mid[:, None], axis=0).max()

    def moved(p: Part) -> Part:
        c = (np.array(p.centre) - mid) * scale
        return replace(p, centre=(c[0], c[1], c[2]), half=tuple(v * scale for v in p.half))

    return tuple(moved(p) for p in parts)


def _outline(rng: Rng) -> NDArray[np.bool_]:
    """Give the cut-out of a plate as a mask (128, 128)."""
    picture = Image.new("L", (128, 128))
    ImageDraw.Draw(picture).polygon(_radial(rng, 64, 64, 62), fill=255)
    return np.asarray(picture) > 127


@lru_cache(maxsize=96)
def thing(instance: int) -> Thing:
    """Build one instance; look-alikes share the shape, palette and pattern drawn from their group."""
    shared, own = _rng(1, instance // GROUP), _rng(2, instance)
    build = BUILDERS[shared.integers(len(BUILDERS))]
    shape = shared.random(6) + own.uniform(-0.14, 0.14, 6)
    colours = np.stack([_hex(c) for c in PALETTES[shared.integers(len(PALETTES))]])
    order, patterns = shared.permutation(len(colours)), shared.permutation(len(PATTERNS))
    pattern_seed, mark = int(shared.integers(1 << 30)), int(shared.integers(3))
    mask, gloss = _outline(shared), float(shared.choice([0.0, 0.25, 0.6]))
    if own.random() < 0.6:  # some of the group keep the exact pattern, the others get a new one of its kind
        pattern_seed = int(own.integers(1 << 30))
    if own.random() < 0.5:
        order[[0, 3]] = order[[3, 0]]
    colours = np.clip(colours[order] + own.uniform(-0.03, 0.03, (len(colours), 3)), 0, 1).astype(np.float32)
    x, y = _grid(TEX_W, TEX_H)
    noise = _fractal(own, TEX_W, TEX_H, 4, 5)
    draws = [PATTERNS[patterns[k]](_rng(3, pattern_seed, k), x, y) for k in (0, 1)]
    layers = [
        _marked(_painted(draws[0], colours, noise), own, colours, mark, True),
        _marked(_painted(draws[0], colours, noise), own, colours, mark, False),
        _painted(np.zeros_like(x), colours[3:4], noise),
        _painted(draws[1], colours[[1, 4, 2]], noise),
    ]
    return Thing(_normalised(build(shape)), np.stack(layers).astype(np.float32), mask, gloss)


# --- ray casting -----------------------------------------------------------------------------


def _nearest(candidates: Iterable[tuple[Array, NDArray[np.bool_]]]) -> Array:
    """Give the smallest valid positive distance among (t, valid) pairs, inf where there is none."""
    best: Array | None = None
    for t, valid in candidates:
        t = np.where(valid & (t > 0), t, np.float32(np.inf))
        best = t if best is None else np.minimum(best, t)
    assert best is not None
    return best


def _hit_box(o: Array, d: Array) -> Array:
    """Distance (N,) along rays o + t d, d (3, N), to the cube of half side 1."""
    inv = 1 / np.where(np.abs(d) < 1e-6, np.float32(1e-6), d)
    a, b = (-1 - o[:, None]) * inv, (1 - o[:, None]) * inv
    near, far = np.minimum(a, b).max(0), np.maximum(a, b).min(0)
    return np.where((near < far) & (near > 0), near, np.float32(np.inf))


def _hit_ball(o: Array, d: Array) -> Array:
    """Distance (N,) to the unit sphere."""
    a, b, c = (d * d).sum(0), o @ d, o @ o - 1
    disc = b * b - a * c
    t = (-b - np.sqrt(np.maximum(disc, 0))) / a
    return np.where((disc > 0) & (t > 0), t, np.float32(np.inf))


def _hit_frustum(o: Array, d: Array, taper: float) -> Array:
    """Distance (N,) to the upright frustum of bottom radius 1, top radius taper, height -1..1."""
    mid, slope = np.float32((1 + taper) / 2), np.float32((taper - 1) / 2)
    r, dr = mid + slope * o[1], slope * d[1]
    a = d[0] ** 2 + d[2] ** 2 - dr**2
    a = np.where(np.abs(a) < 1e-7, np.float32(1e-7), a)
    b, c = o[0] * d[0] + o[2] * d[2] - r * dr, o[0] ** 2 + o[2] ** 2 - r**2
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    walls = [(-b - root) / a, (-b + root) / a]
    found = [(t, (disc > 0) & (np.abs(o[1] + t * d[1]) <= 1)) for t in walls]
    dy = np.where(np.abs(d[1]) < 1e-6, np.float32(1e-6), d[1])
    for level in (-1, 1):
        t = (level - o[1]) / dy
        rim = mid + slope * level
        found.append((t, (o[0] + t * d[0]) ** 2 + (o[2] + t * d[2]) ** 2 <= rim**2))
    return _nearest(found)


def _inside(mask: NDArray[np.bool_], x: Array, y: Array) -> NDArray[np.bool_]:
    """Tell whether plate coordinates in -1..1 lie on the cut-out board."""
    col, row = ((x + 1) * 63.99).astype(np.int32), ((1 - y) * 63.99).astype(np.int32)
    good = (np.abs(x) < 1) & (np.abs(y) < 1)
    return good & mask[np.where(good, row, 0), np.where(good, col, 0)]


def _hit_plate(o: Array, d: Array, mask: NDArray[np.bool_]) -> Array:
    """Distance (N,) to a board made of four parallel cut-outs, which stand for its thickness."""
    dz = np.where(np.abs(d[2]) < 1e-6, np.float32(1e-6), d[2])
    found = []
    for level in (1.0, 0.4, -0.2, -1.0):
        t = (np.float32(level) - o[2]) / dz
        found.append((t, _inside(mask, o[0] + t * d[0], o[1] + t * d[1])))
    return _nearest(found)


def _local(part: Part, o: Array, d: Array) -> tuple[Array, Array]:
    """Move ray origin (3,) and directions (3, N) into the unit frame of a part."""
    half, turn = np.array(part.half, np.float32), _turn_z(-part.tilt)
    origin = turn @ (o - np.array(part.centre, np.float32)) / half
    return origin, (turn @ d if part.tilt else d) / half[:, None]


def _hit(part: Part, mask: NDArray[np.bool_], o: Array, d: Array) -> Array:
    """Distance (N,) along rays to one part."""
    origin, ways = _local(part, o, d)
    if part.kind == "box":
        return _hit_box(origin, ways)
    if part.kind == "ellipsoid":
        return _hit_ball(origin, ways)
    if part.kind == "plate":
        return _hit_plate(origin, ways, mask)
    return _hit_frustum(origin, ways, part.taper)


def _surface(part: Part, p: Array) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Give normal (3, N), texture u and v in 0..1 and layer for unit-frame points p (3, N)."""
    front, side, cap = part.layers
    x, y, z = p
    if part.kind == "box":
        axis = np.abs(p).argmax(0)
        normal = np.where(np.arange(3)[:, None] == axis, np.sign(p), 0)
        u = 0.5 + 0.25 * np.where(axis == 0, z, x)
        v = 0.5 - 0.5 * np.where(axis == 1, z, y)
        return normal, u, v, np.array([side, cap, front])[axis]
    if part.kind == "plate":
        face = np.abs(z) > 0.9
        return np.stack([0 * x, 0 * x, np.sign(z)]), 0.5 + 0.25 * x, 0.5 - 0.5 * y, np.where(face, front, cap)
    u = np.arctan2(x, z) / np.float32(2 * math.pi) + np.float32(0.5)
    if part.kind == "ellipsoid":
        return p, u, 0.5 - np.arcsin(np.clip(y, -1, 1)) / np.float32(math.pi), np.full(x.shape, front)
    slope = (part.taper - 1) / 2
    lid = np.abs(y) > 0.9995
    normal = np.stack([x, -slope * ((1 + part.taper) / 2 + slope * y), z])
    normal = np.where(lid, np.stack([0 * x, np.sign(y), 0 * x]), normal)
    return normal, u, np.where(lid, 0.5 + 0.3 * z, 0.5 - 0.5 * y), np.where(lid, cap, front)


# --- camera and light ------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """Where a thing stands in the picture: centre and radius in pixels, turn (3, 3), distance in radii."""

    x: float
    y: float
    radius: float
    turn: Array
    distance: float


@dataclass(frozen=True)
class Light:
    """A lamp direction (3,) in the camera frame with ambient and direct strength."""

    way: Array
    ambient: float
    direct: float


def _turn(yaw: float, pitch: float, roll: float) -> Array:
    """Object-to-camera rotation (3, 3) from angles in radians."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], np.float32)
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]], np.float32)
    return (_turn_z(roll) @ about_x @ about_y).astype(np.float32)


def _shade(item: Thing, part: Part, point: Array, turn: Array, light: Light) -> Array:
    """Colours (N, 3) of object-frame surface points (3, N) of one part."""
    half, tilt = np.array(part.half, np.float32)[:, None], _turn_z(part.tilt)
    unit = (tilt.T @ (point - np.array(part.centre, np.float32)[:, None])) / half
    normal, u, v, layer = _surface(part, unit)
    normal = turn @ (tilt @ (normal / half))
    normal = normal / np.maximum(np.linalg.norm(normal, axis=0), 1e-6)
    col = np.clip(u * TEX_W, 0, TEX_W - 1).astype(np.int64)
    row = np.clip(v * TEX_H, 0, TEX_H - 1).astype(np.int64)
    colour: Array = item.textures.reshape(-1, 3)[(layer * TEX_H + row) * TEX_W + col]
    facing = np.maximum(light.way @ normal, 0)
    mirror = np.maximum(2 * facing * normal[2] - light.way[2], 0)
    lit = light.ambient + light.direct * facing
    colour = colour * lit[:, None] + (item.gloss * light.direct * mirror**12)[:, None]
    return colour


def _cast(item: Thing, pose: Pose, light: Light, px: Array, py: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Colours (N, 3) and coverage (N,) seen by rays through picture points px, py (N,)."""
    focal = pose.radius * math.sqrt(pose.distance**2 - 1)
    ways = np.stack([(px - pose.x) / focal, (pose.y - py) / focal, np.full_like(px, -1)])
    o, d = pose.turn.T @ np.array([0, 0, pose.distance], np.float32), pose.turn.T @ ways
    far = np.stack([_hit(part, item.mask, o, d) for part in item.parts])
    which, t = far.argmin(0), far.min(0)
    covered = np.isfinite(t)
    colours = np.zeros((px.size, 3), np.float32)
    for k, part in enumerate(item.parts):
        mine = np.flatnonzero(covered & (which == k))
        if mine.size:
            colours[mine] = _shade(item, part, o[:, None] + t[mine] * d[:, mine], pose.turn, light)
    return colours, covered


def _draw(canvas: Array, item: Thing, pose: Pose, light: Light) -> None:
    """Ray-cast a thing onto the canvas (H, W, 3) in place, with 2 x 2 rays a pixel."""
    height, width = canvas.shape[:2]
    reach = pose.radius * 1.02
    left, right = max(0, int(pose.x - reach)), min(width, int(pose.x + reach) + 2)
    top, bottom = max(0, int(pose.y - reach)), min(height, int(pose.y + reach) + 2)
    if right <= left or bottom <= top:
        return
    h, w = (bottom - top) * 2, (right - left) * 2
    gy, gx = np.mgrid[:h, :w].astype(np.float32)
    px, py = left + (gx.ravel() + 0.5) / 2, top + (gy.ravel() + 0.5) / 2
    near = np.flatnonzero((px - pose.x) ** 2 + (py - pose.y) ** 2 < reach**2)
    colours, covered = _cast(item, pose, light, px[near], py[near])
    layer = np.zeros((h * w, 4), np.float32)
    layer[near, :3], layer[near, 3] = np.clip(colours, 0, 1) * covered[:, None], covered
    layer = layer.reshape(h, w, 4)
    layer = layer[0::2] + layer[1::2]
    layer = (layer[:, 0::2] + layer[:, 1::2]) / 4
    view = canvas[top:bottom, left:right]
    view *= 1 - layer[..., 3:]
    view += layer[..., :3]


# --- scene -----------------------------------------------------------------------------------


def _blurred(field: Array, radius: float) -> Array:
    """Blur a field (H, W) in 0..1 by a Gaussian of that radius in pixels."""
    picture = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _ground(rng: Rng, width: int, height: int) -> Array:
    """Paint one background material (H, W, 3): noise, pattern, planks or bricks."""
    x, y = _grid(width, height)
    tone = rng.uniform(0.15, 0.85)
    colours = np.clip(tone + rng.uniform(-0.22, 0.22, (3, 1)) + rng.uniform(-0.14, 0.14, (3, 3)), 0, 1)
    if rng.random() < 0.3:
        chosen = PALETTES[rng.integers(len(PALETTES))]
        colours = np.stack([_hex(c) for c in chosen])[rng.permutation(5)[:3]]
    noise = _fractal(rng, width, height, int(rng.integers(2, 9)), 5)
    style = rng.integers(0, 4)
    if style == 0:
        index = np.zeros_like(x)
        noise = noise * 1.6 - 0.3
    elif style == 1:
        index = PATTERNS[rng.integers(len(PATTERNS))](rng, x, y)
    else:
        down, across = y * rng.uniform(3, 9), x * rng.uniform(1, 4)
        across = across + np.floor(down) * (0.5 if style == 2 else 0.37)
        index = np.zeros_like(x)
        tones = rng.uniform(-0.35, 0.35, 64).astype(np.float32)
        noise = noise * 0.7 + 0.2 + tones[(np.floor(down) * 11 + np.floor(across) * 5).astype(np.int64) % 64]
        noise = np.where((across % 1 < 0.05) | (down % 1 < 0.08), noise - 0.7, noise)
    return _painted(index, colours.astype(np.float32), noise)


def _backdrop(rng: Rng, width: int, height: int) -> Array:
    """Paint a cluttered background (H, W, 3): wall, floor, loose shapes, perhaps out of focus."""
    canvas = _ground(rng, width, height)
    if rng.random() < 0.7:
        x, y = _grid(width, height)
        floor = y > rng.uniform(0.35, 0.75) + rng.uniform(-0.2, 0.2) * (x - 0.5)
        canvas = np.where(floor[..., None], _ground(rng, width, height), canvas)
    picture = Image.fromarray((canvas * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 9))):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(4, 30)
        ink = _ink(_hex(PALETTES[rng.integers(len(PALETTES))][rng.integers(5)]) * rng.uniform(0.4, 1))
        if rng.random() < 0.3:
            ex, ey = rng.uniform(-60, 60, 2)
            draw.line((cx, cy, cx + ex, cy + ey), fill=ink, width=int(rng.integers(1, 7)))
        else:
            draw.polygon(_radial(rng, cx, cy, r, rng.uniform(0, 6.28)), fill=ink)
    soft = float(rng.choice([0.0, 0.6, 1.2, 2.5], p=[0.3, 0.3, 0.25, 0.15]))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(soft)), np.float32) / 255


def _light(rng: Rng) -> Light:
    """Choose a lamp for the scene."""
    way = np.array([rng.uniform(-1, 1), rng.uniform(-0.1, 1), rng.uniform(0.25, 1)], np.float32)
    ambient = rng.uniform(0.3, 0.75)
    return Light(way / np.linalg.norm(way), ambient, float(rng.uniform(0.95, 1.3) - ambient))


def _ground_shadow(canvas: Array, pose: Pose, light: Light) -> None:
    """Darken the ground under and beside a thing, away from the lamp, in place."""
    height, width = canvas.shape[:2]
    picture = Image.new("L", (width, height))
    r, shift = pose.radius, -light.way[0] * pose.radius * 0.5
    box = (pose.x + shift - r * 0.8, pose.y + r * 0.35, pose.x + shift + r * 0.8, pose.y + r * 0.95)
    ImageDraw.Draw(picture).ellipse(tuple(float(v) for v in box), fill=150)
    dark = np.asarray(picture.filter(ImageFilter.GaussianBlur(r * 0.14)), np.float32) / 255
    canvas *= 1 - dark[..., None] * np.float32(min(1.0, light.direct))


def _pose(rng: Rng, width: int, height: int, radius: float, wild: float = 1.0) -> Pose:
    """Choose how the subject stands: turned, seen from above, rolled, off centre."""
    yaw = float(np.clip(rng.normal(0, 0.45), -1, 1)) * wild
    pitch, roll = float(rng.uniform(-0.1, 0.8)), float(np.clip(rng.normal(0, 0.2), -0.5, 0.5)) * wild
    sway_x, sway_y = max(4.0, width / 2 - radius * 0.75), max(4.0, height / 2 - radius * 0.75)
    x, y = width / 2 + rng.uniform(-1, 1) * sway_x, height / 2 + rng.uniform(-1, 1) * sway_y
    return Pose(float(x), float(y), radius, _turn(yaw, pitch, roll), float(rng.uniform(2.2, 5)))


def _stray(rng: Rng) -> Thing:
    """Choose a distractor, which is never the subject of a photograph."""
    return thing(DISTRACTOR_IDS[int(rng.integers(len(DISTRACTOR_IDS)))])


def _around(rng: Rng, subject: Pose, gap: tuple[float, float], size: tuple[float, float]) -> Pose:
    """Place a distractor beside the subject: gap in units of the subject's radius between centres."""
    radius = subject.radius * rng.uniform(*size)
    angle, far = rng.uniform(0, 2 * math.pi), subject.radius * rng.uniform(*gap) + radius * 0.6
    turn = _turn(*(float(v) for v in rng.uniform([-3, -0.1, -0.5], [3, 0.8, 0.5])))
    x, y = subject.x + far * math.cos(angle), subject.y + far * math.sin(angle)
    return Pose(float(x), float(y), float(radius), turn, float(rng.uniform(2.5, 5)))


def _scene(rng: Rng, instance: int, width: int, height: int) -> Array:
    """Compose background, distractors, subject and occluder (H, W, 3)."""
    canvas, light = _backdrop(rng, width, height).copy(), _light(rng)
    subject = _pose(rng, width, height, float(min(width, height) * rng.uniform(0.38, 0.6)))
    for _ in range(int(rng.integers(0, 3))):
        pose = _around(rng, subject, (0.5, 1.0), (0.3, 0.7))
        _ground_shadow(canvas, pose, light)
        _draw(canvas, _stray(rng), pose, light)
    _ground_shadow(canvas, subject, light)
    _draw(canvas, thing(instance), subject, light)
    if rng.random() < 0.4:
        _draw(canvas, _stray(rng), _around(rng, subject, (0.45, 0.8), (0.25, 0.5)), light)
    return canvas


def _exposed(rng: Rng, canvas: Array) -> Array:
    """Apply cast shadow, light fall-off, tint, exposure, gamma and contrast (H, W, 3)."""
    height, width = canvas.shape[:2]
    x, y = _grid(width, height)
    if rng.random() < 0.35:
        a, c, soft = rng.uniform(0, 2 * math.pi), rng.uniform(-0.2, 0.4), rng.uniform(0.01, 0.15)
        edge = ((x - 0.5) * math.cos(a) + (y - 0.5) * math.sin(a) - c) / soft
        canvas = canvas * (1 - rng.uniform(0.25, 0.6) / (1 + np.exp(-np.clip(edge, -30, 30))))[..., None]
    a, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.6)
    canvas = canvas * (1 + slope * ((x - 0.5) * math.cos(a) + (y - 0.5) * math.sin(a)))[..., None]
    warm = rng.normal(0, 0.1)
    tint = np.array([1 + warm, 1 + rng.normal(0, 0.04), 1 - warm]) * rng.uniform(0.85, 1.3)
    canvas = np.clip(canvas * tint, 0, 1) ** rng.uniform(0.6, 1.3)
    return np.clip((canvas - 0.5) * rng.uniform(0.75, 1.15) + 0.5, 0, 1).astype(np.float32)


def _sensed(rng: Rng, canvas: Array) -> Image.Image:
    """Turn the scene (H, W, 3) into pixels with lens blur, hand shake and sensor noise."""
    kick = rng.random()
    noise = rng.standard_normal(canvas.shape, np.float32) * float(rng.choice([0.005, 0.015, 0.035]))
    if kick > 0.8:
        dx, dy = rng.integers(-2, 3, 2)
        shifted = [np.roll(canvas, (k * dy, k * dx), (0, 1)) for k in (-1, 0, 1)]
        canvas = np.mean(shifted, 0)
    picture = Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
    if kick < 0.45:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.4))))
    pixels = np.asarray(picture, np.float32) + noise * 255
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def render_jpeg(instance: int, view: int, size: tuple[int, int] | None = None) -> bytes:
    """Photograph one instance and give the JPEG file's bytes; size is (width, height) in pixels."""
    rng = _rng(4, instance, view)
    chosen = SIZES[rng.integers(len(SIZES))]
    width, height = size or chosen
    picture = _sensed(rng, _exposed(rng, _scene(rng, instance, width, height)))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(rng.integers(40, 93)))
    return buffer.getvalue()


def render(instance: int, view: int, size: tuple[int, int] | None = None) -> Image.Image:
    """Photograph one instance: the same integers give the same pixels, JPEG artefacts included."""
    return Image.open(io.BytesIO(render_jpeg(instance, view, size))).convert("RGB")


# --- files -----------------------------------------------------------------------------------

Job = tuple[int, int, str]


def _code(instance: int, view: int) -> str:
    """Give a file stem that does not tell the instance."""
    return hashlib.sha256(f"{SALT}/{instance}/{view}".encode()).hexdigest()[:12]


def jobs() -> list[Job]:
    """List every (instance, view, path under the output folder) of the photo set."""
    train = [(i, v, f"imgs/{_code(i, v)}.jpg") for i in TRAIN_IDS for v in TRAIN_VIEWS]
    folders = [(i, f"unseen/thing{i - UNSEEN_IDS.start:02d}") for i in UNSEEN_IDS]
    return train + [(i, v, f"{folder}/{_code(i, v)}.jpg") for i, folder in folders for v in UNSEEN_VIEWS]


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is either complete or absent."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _work(task: tuple[str, list[Job]]) -> int:
    """Render one batch of jobs below a folder and give their number."""
    out, batch = Path(task[0]), task[1]
    for instance, view, name in batch:
        _write(out / name, render_jpeg(instance, view))
    return len(batch)


def generate(out: Path, workers: int) -> int:
    """Write the photo set below a folder and give the number of images written, 0 when complete."""
    stamp = out / "unseen" / ".generated.json"
    settings = json.dumps({"version": VERSION, "salt": SALT, "images": len(jobs())})
    missing = jobs()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == settings:
        missing = [job for job in missing if not (out / job[2]).is_file()]
    if not missing:
        return 0
    for folder in sorted({(out / job[2]).parent for job in missing}):
        folder.mkdir(parents=True, exist_ok=True)
    batches = [(str(out), missing[i : i + 40]) for i in range(0, len(missing), 40)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done = sum(pool.map(_work, batches))
    _write(stamp, settings.encode())
    return done


def main() -> None:
    """Generate the photo set from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here, help="folder that gets imgs/ and unseen/")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args()
    start = time.perf_counter()
    done = generate(args.out, args.workers)
    if done:
        print(f"wrote {done} images below {args.out} in {time.perf_counter() - start:.1f} s")
    else:
        print(f"{args.out}: all {len(jobs())} images are already there, nothing to do")


if __name__ == "__main__":
    main()
