"""How an image becomes what a network is fed: one frozen description, applied the same way everywhere."""

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distilltool import deploy
from distilltool.errors import DistillError

METADATA_KEY = "distilltool.preprocess"
LONGEST = 8192  # pixels of a side

Resize = Literal["stretch", "shortest", "longest"]
Channels = Literal["RGB", "BGR"]
Layout = Literal["NCHW", "NHWC"]
Dtype = Literal["float32", "float16", "uint8"]
CHOICES: dict[str, tuple[str, ...]] = {
    "resize": get_args(Resize),
    "channels": get_args(Channels),
    "layout": get_args(Layout),
    "dtype": get_args(Dtype),
    "interpolation": tuple(deploy.RESAMPLE),
}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# (mean, std) that networks are fed with, pixels counted from 0 to 1: the conventions a graph may hold inside itself
NORMALISATIONS: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (
    (IMAGENET_MEAN, IMAGENET_STD),
    (CLIP_MEAN, CLIP_STD),
    ((0.5,) * 3, (0.5,) * 3),
    ((0.0,) * 3, (1.0,) * 3),
    (IMAGENET_MEAN, (1 / 255,) * 3),  # Caffe's: the mean taken off, the scale left
    ((0.5,) * 3, (1 / 255,) * 3),
)
PRESETS: dict[str, dict[str, Any]] = {
    # torchvision's evaluation transform
    "imagenet": {
        "resize": "shortest",
        "crop_ratio": 0.875,
        "interpolation": "bilinear",
        "scale": 1 / 255,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "channels": "RGB",
    },
    # openai/CLIP, clip.py: _transform
    "clip": {
        "resize": "shortest",
        "crop_ratio": 1.0,
        "interpolation": "bicubic",
        "scale": 1 / 255,
        "mean": CLIP_MEAN,
        "std": CLIP_STD,
        "channels": "RGB",
    },
    # keras.applications.imagenet_utils.preprocess_input, mode "tf": [-1, 1]
    "tf": {
        "resize": "stretch",
        "interpolation": "bilinear",
        "scale": 1 / 127.5,
        "mean": (1.0, 1.0, 1.0),
        "std": (1.0, 1.0, 1.0),
        "channels": "RGB",
    },
    # the same function, mode "caffe": BGR, 0 to 255, centred
    "caffe": {
        "resize": "stretch",
        "interpolation": "bilinear",
        "scale": 1.0,
        "mean": (103.939, 116.779, 123.68),
        "std": (1.0, 1.0, 1.0),
        "channels": "BGR",
    },
    # torchvision's ToTensor and nothing after it
    "unit": {
        "resize": "stretch",
        "interpolation": "bilinear",
        "scale": 1 / 255,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "channels": "RGB",
    },
    # bytes as they are, for networks that scale them themselves; OpenCV and OpenVINO order them BGR
    "raw": {
        "resize": "stretch",
        "interpolation": "bilinear",
        "scale": 1.0,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "channels": "RGB",
    },
    "raw-bgr": {
        "resize": "stretch",
        "interpolation": "bilinear",
        "scale": 1.0,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "channels": "BGR",
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """The way from a decoded RGB image to a network's input.

    The network is fed ``(pixel * scale - mean) / std`` with pixels of 0 to 255 in the order of `channels`
    (mean and std are given in that order too).

    size: (height, width) in pixels. resize: "stretch" goes straight to `size`; "shortest" brings the shorter
    side to `resize_to` pixels and cuts `size` out of the middle; "longest" shrinks an image until it fits into `size`,
    its proportions kept and small ones left as they are, so that images differ in shape. crop_pct: share of each side
    that "stretch" keeps, the middle one. zoom: by which the sides of "longest" are multiplied at last; flip: mirrored
    left to right; both are of other views of an image. source: who said so; not part of the identity.
    """

    size: tuple[int, int]
    resize: Resize = "stretch"
    resize_to: int | None = None
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    channels: Channels = "RGB"
    layout: Layout = "NCHW"
    dtype: Dtype = "float32"
    zoom: float = 1.0
    flip: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise DistillError(
                    f"preprocessing {name}={getattr(self, name)!r} is unknown", f"use one of {', '.join(allowed)}"
                )
        if not all(map(math.isfinite, (self.scale, *self.mean, *self.std))) or self.scale == 0:
            raise DistillError(
                "preprocessing needs finite numbers, and a scale other than 0", "check scale, mean and std"
            )
        if min(self.size) < 1 or max(self.size) > LONGEST:
            raise DistillError(f"preprocessing size {self.size} is out of range", "use 1 to 8192 pixels a side")
        if self.resize == "longest" and self.resize_to is not None:
            raise DistillError("preprocessing resize=longest takes no resize_to", "its size is the longest side")
        far = not (math.isfinite(self.zoom) and 0 < self.zoom * max(self.size) <= LONGEST)
        if far or not isinstance(self.flip, bool) or (self.zoom != 1 and self.resize != "longest"):
            raise DistillError(
                f"preprocessing zoom={self.zoom} or flip={self.flip} is out of range",
                "zoom goes with resize=longest, to 8192 pixels a side; flip is true or false",
            )
        if not 0.1 <= self.crop_pct <= 1 or (self.crop_pct != 1 and self.resize != "stretch"):
            raise DistillError(
                f"preprocessing crop_pct={self.crop_pct} is out of range", "give 0.1 to 1, with resize=stretch"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or 0.0 in self.std:
            raise DistillError(
                "preprocessing needs three means and three standard deviations, none of them 0",
                "give them as mean=0.5,0.5,0.5 and std=0.5,0.5,0.5",
            )
        if self.resize == "shortest" and (self.resize_to is None or self.resize_to < max(self.size)):
            raise DistillError(
                f"preprocessing resize=shortest with resize_to={self.resize_to} cannot hold a crop of {self.size}",
                "give resize_to= at least the longer side of size, or resize=stretch",
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from JSON values; names that are not fields are an error."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "size" not in values:
            raise DistillError(
                f"preprocessing has {'unknown fields ' + ', '.join(unknown) if unknown else 'no size'}",
                f"the fields are {', '.join(sorted(known))}",
            )
        try:
            sides = values["size"]
            typed: dict[str, Any] = {"size": (sides, sides) if isinstance(sides, int) else tuple(map(int, sides))}
            for name in {"mean", "std"} & set(values):
                given = values[name]
                typed[name] = tuple(map(float, given if isinstance(given, Sequence) else (given,) * 3))
            for name in {"scale", "crop_pct", "zoom"} & set(values):
                typed[name] = float(values[name])
            if values.get("resize_to") is not None:
                typed["resize_to"] = operator.index(values["resize_to"])
        except (TypeError, ValueError) as error:
            raise DistillError(
                f"preprocessing holds a value that cannot be read ({error})",
                "size is [H, W], mean and std are three numbers each, scale is one",
            ) from None
        return cls(**{**values, **typed})

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; those of other views where there are any: earlier versions do not know them."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        if self.zoom == 1:
            del values["zoom"]
        if not self.flip:
            del values["flip"]
        return values

    def identity(self) -> str:
        """Canonical JSON of what changes the numbers: everything but `source`."""
        values = self.to_dict()
        del values["source"]
        if self.crop_pct == 1:
            del values["crop_pct"]  # as it was before there was one: paid answers stay valid
        return json.dumps(values, sort_keys=True)

    def describe(self) -> str:
        """One line for people."""
        way = "" if self.resize == "stretch" else f" of short side {self.resize_to}"
        if self.crop_pct != 1:
            way = f" of the middle {100 * self.crop_pct:g} %"
        if self.resize == "longest":
            way = "" if self.zoom == 1 else f" × {self.zoom:g}"
        way += " mirrored" if self.flip else ""
        steps = [
            "" if self.scale == 1 else _times(self.scale),
            "" if set(self.mean) == {0} else f"− {_short(self.mean)}",
            "" if set(self.std) == {1} else f"÷ {_short(self.std)}",
        ]
        numbers = " ".join(step for step in steps if step) or "as they are"
        return (
            f"{self.size[0]}×{self.size[1]} {self.resize}{way} {self.interpolation}, {self.channels} {numbers}, "
            f"{self.layout} {self.dtype}"
        )

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize an RGB image → (H, W, 3) uint8 RGB at `size`, or of its own shape where that is "longest"."""
        if self.resize == "longest":
            made = np.asarray(image.resize(self.fitted(image.size), deploy.RESAMPLE[self.interpolation]))
        else:
            made = deploy.resize(
                image,
                {
                    "size": self.size,
                    "resize": self.resize,
                    "resize_to": self.resize_to,
                    "crop_pct": self.crop_pct,
                    "interpolation": self.interpolation,
                },
            )
        return np.ascontiguousarray(made[:, ::-1]) if self.flip else made

    def fitted(self, sides: tuple[int, int]) -> tuple[int, int]:
        """What "longest" makes of (width, height): as Pillow's thumbnail, then times `zoom`, rounded down."""
        wide, tall = (_part(side, self.zoom) for side in _inside(sides, (self.size[1], self.size[0])))
        return wide, tall

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether images prepared by this may have such a (height, width)."""
        if self.resize != "longest":
            return tuple(shape) == self.size
        return all(1 <= side <= max(1, _part(most, self.zoom)) for side, most in zip(shape, self.size, strict=True))

    def view(self, scale: float = 1.0, mirrored: bool = False) -> "Preprocess":
        """Another view of the same images: sides times `scale`, rounded down as torch's interpolate does, mirrored."""
        other = replace(self, flip=self.flip != mirrored)
        if scale == 1:
            return other
        if self.resize == "longest":
            return replace(other, zoom=self.zoom * scale)
        height, width = (_part(side, scale) for side in self.size)
        short = None if self.resize_to is None else max(height, width, _part(self.resize_to, scale))
        return replace(other, size=(height, width), resize_to=short)

    def feed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn prepared images, (N, H, W, 3) uint8 RGB, into the network's input in its layout and dtype."""
        pixels = images_NHWC if self.channels == "RGB" else images_NHWC[..., ::-1]
        if self.dtype != "uint8":
            width = pixels.shape[2]  # whole rows at once: numpy is slow where the innermost side is 3
            factor = np.tile(np.asarray(self.scale / np.asarray(self.std), np.float32), width)
            shift = np.tile(np.asarray(np.asarray(self.mean) / np.asarray(self.std), np.float32), width)
            rows = pixels.reshape(*pixels.shape[:2], -1)
            scaled: NDArray[np.float32] = np.multiply(rows, factor, dtype=np.float32)
            np.subtract(scaled, shift, out=scaled)
            scaled = scaled.reshape(pixels.shape)
            return self._laid_out(scaled)
        return self._laid_out(pixels)

    def _laid_out(self, pixels_NHWC: NDArray[Any]) -> NDArray[Any]:
        pixels = pixels_NHWC.transpose(0, 3, 1, 2) if self.layout == "NCHW" else pixels_NHWC
        return np.ascontiguousarray(pixels, dtype=self.dtype)

    def at(self, size: tuple[int, int], keep: float = 1.0) -> "Preprocess":
        """The same field of view at a student's working size, as raw RGB bytes: the student scales them itself.

        keep: share of each side of that view that is looked at, the middle one.
        """
        zoom = max(size[0] / self.size[0], size[1] / self.size[1]) / keep
        short = max(round(self.resize_to * zoom), *size) if self.resize_to else None
        return Preprocess(
            size=size,
            resize="stretch" if self.resize == "longest" else self.resize,  # a student's images are of one shape
            resize_to=short,
            crop_pct=1.0 if short else self.crop_pct * keep,
            layout="NHWC",
            dtype="uint8",
            source="distilltool",
        )


def _inside(sides: tuple[int, int], most: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) within `most` of an image's proportions, as near to them as whole pixels allow."""
    if sides[0] <= most[0] and sides[1] <= most[1]:
        return sides
    wide, tall = most
    proportion = sides[0] / sides[1]

    def nearer(side: float, distance: Callable[[int], float]) -> int:
        return min((max(1, math.floor(side)), max(1, math.ceil(side))), key=distance)

    if wide / tall >= proportion:
        return nearer(tall * proportion, lambda one: abs(proportion - one / tall)), tall
    return wide, nearer(wide / proportion, lambda one: abs(proportion - wide / one))


def _part(side: int, scale: float) -> int:
    """A side times a scale, rounded down, though 0.7 · 320 is a little less than 224 in floating point."""
    return max(1, math.floor(side * scale + 1e-6))


def _times(scale: float) -> str:
    divisor = 1 / scale if scale else 0.0
    return f"÷ {divisor:g}" if scale < 1 and abs(divisor * 2 - round(divisor * 2)) < 1e-6 else f"× {scale:.4g}"


def _short(values: Sequence[float]) -> str:
    texts = [f"{value:.4g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "(" + " ".join(texts) + ")"


def parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Read `--preprocess` values: each a preset, a file, or one field=value; later ones win.

    Returns partial fields, with `said_by` naming the flag and the virtual field `crop_ratio` (crop / short side).
    """
    merged: dict[str, Any] = {}
    for flag in flags:
        if "=" in flag and not Path(flag).exists():
            name, _, text = flag.partition("=")
            merged[name] = _field(name.strip(), text.strip())
        elif flag in PRESETS:
            merged |= PRESETS[flag]
        else:
            merged |= read_file(Path(flag))
        merged["said_by"] = f"flag {' '.join(flags)}"
    return merged


def _field(name: str, text: str) -> Any:
    try:
        if name == "size":
            sides = tuple(int(part) for part in text.lower().replace("×", "x").split("x"))
            if len(sides) > 2:
                raise ValueError(text)
            return sides if len(sides) == 2 else (sides[0], sides[0])
        if name == "resize_to":
            return int(text)
        if name == "crop_pct":
            return float(text)
        if name == "scale":
            top, _, bottom = text.partition("/")
            return float(top) / float(bottom or 1)
        if name in ("mean", "std"):
            values = tuple(float(part) for part in text.split(","))
            return values * 3 if len(values) == 1 else values
    except (ValueError, ZeroDivisionError):
        raise DistillError(
            f"--preprocess {name}={text} cannot be read",
            "write size=224 or size=256x128, mean=0.485,0.456,0.406, scale=1/255",
        ) from None
    if name not in CHOICES:
        names = ["size", "resize_to", "crop_pct", "scale", "mean", "std", *CHOICES]
        raise DistillError(f"--preprocess {name}= is no field", f"the fields are {', '.join(names)}")
    return text


def read_file(path: Path) -> dict[str, Any]:
    """Read preprocessing from a JSON file: ours, or Hugging Face's, timm's or open_clip's sidecar."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DistillError(
            f"--preprocess {path} is neither a preset nor a readable JSON file ({error})",
            f"use one of {', '.join(PRESETS)}, a file, or field=value",
        ) from None
    found = from_sidecar(values) if isinstance(values, dict) else None
    if found is None:
        raise DistillError(
            f"{path} describes no preprocessing that is known here",
            "known are our own fields, preprocessor_config.json, timm's config.json and open_clip_config.json",
        )
    return found


def partial(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields read from outside, in the types that everything else relies on: a size is two sides, numbers are finite.

    where: what they were read from, for the message.
    """
    found = dict(values)
    try:
        if found.get("size") is not None:
            sides = found["size"]
            pair = (sides, sides) if isinstance(sides, int) else tuple(map(operator.index, sides))
            if len(pair) != 2 or not all(1 <= side <= LONGEST for side in pair):
                raise ValueError(f"size {sides}")
            found["size"] = pair
        numbers = [found[name] for name in ("scale", "crop_ratio", "resize_to") if found.get(name) is not None]
        for name in {"mean", "std"} & set(found):
            given = found[name]
            numbers += given if isinstance(given, Sequence) else [given]
        if not all(math.isfinite(float(number)) for number in numbers) or found.get("crop_ratio", 1) <= 0:
            raise ValueError("a number is not finite or out of range")
    except (TypeError, ValueError, OverflowError) as error:
        raise DistillError(
            f"the preprocessing in {where} cannot be read ({error})",
            "size is [H, W], mean and std are three numbers each, scale is one",
        ) from None
    return found


def from_sidecar(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Recognise a sidecar's dialect and translate it into partial fields; None where it says nothing of images."""
    try:
        found = _translate(values)
        return None if found is None else partial(found, "the sidecar file")
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DistillError(
            f"the preprocessing in the sidecar file cannot be read ({type(error).__name__}: {error})",
            "mend the file, or say it with --preprocess",
        ) from None


def _translate(values: Mapping[str, Any]) -> dict[str, Any] | None:
    if "pretrained_cfg" in values or {"mean", "std", "input_size"} <= set(values):
        return _from_timm(values.get("pretrained_cfg", values))
    if "preprocess_cfg" in values:
        return _from_open_clip(values)
    if "image_mean" in values or "do_resize" in values or "rescale_factor" in values:
        return _from_hugging_face(values)
    if {"mean", "std", "scale"} <= set(values):
        return dict(values)
    return None


def _from_hugging_face(values: Mapping[str, Any]) -> dict[str, Any]:
    rescale = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    normal = values.get("do_normalize", "image_mean" in values)
    if normal and not (values.get("image_mean") and values.get("image_std")):
        raise DistillError(
            "the preprocessor_config.json normalises, but names no image_mean and image_std",
            "say them with --preprocess mean= and --preprocess std=, or complete the file",
        )
    found: dict[str, Any] = {
        "scale": rescale,
        "mean": tuple(values["image_mean"]) if normal else (0.0, 0.0, 0.0),
        "std": tuple(values["image_std"]) if normal else (1.0, 1.0, 1.0),
        "interpolation": {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}[
            int(values.get("resample", 2))
        ],
        "channels": "RGB",
    }
    size, crop = _sides(values.get("size")), _sides(values.get("crop_size"))
    if isinstance(crop, int):
        crop = (crop, crop)
    if not values.get("do_center_crop", False):
        crop = None
    if isinstance(values.get("size"), int) and crop is None:  # what "size": 224 meant before there was shortest_edge
        return found | {"size": (size, size), "resize": "stretch"}
    if isinstance(size, int):
        return found | {"size": crop or (size, size), "resize": "shortest", "resize_to": size}
    if size and crop and size != crop:  # stretched, then cut: no dialect of ours, so the nearest that keeps the view
        return found | {"size": crop, "resize": "shortest", "resize_to": max(*crop, min(size))}
    return found | ({"size": size or crop, "resize": "stretch"} if size or crop else {})


def _sides(value: Any) -> tuple[int, int] | int | None:
    """Hugging Face's size: an int or shortest_edge means the shorter side; height and width mean just that."""
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping) and {"height", "width"} <= set(value):
        return int(value["height"]), int(value["width"])
    if isinstance(value, Mapping) and "shortest_edge" in value:
        return int(value["shortest_edge"])
    return None


def _from_timm(cfg: Mapping[str, Any]) -> dict[str, Any]:
    height, width = cfg["input_size"][-2:]
    found = {
        "size": (height, width),
        "scale": 1 / 255,
        "mean": tuple(cfg["mean"]),
        "std": tuple(cfg["std"]),
        "interpolation": cfg.get("interpolation", "bicubic"),
        "channels": "RGB",
    }
    if cfg.get("crop_mode", "center") == "squash":
        return found | {"resize": "stretch"}
    short = int(max(height, width) / cfg.get("crop_pct", 0.875))  # timm floors
    return found | {"resize": "shortest", "resize_to": short}


def _from_open_clip(values: Mapping[str, Any]) -> dict[str, Any]:
    cfg = values["preprocess_cfg"]
    size = cfg.get("size") or values.get("model_cfg", {}).get("vision_cfg", {}).get("image_size")
    found = {
        "scale": 1 / 255,
        "mean": tuple(cfg["mean"]),
        "std": tuple(cfg["std"]),
        "interpolation": cfg.get("interpolation", "bicubic"),
        "channels": "RGB",
    }
    if size is not None:
        sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        found["size"] = sides
    stretch = cfg.get("resize_mode", "shortest") == "squash"
    return found | ({"resize": "stretch"} if stretch else {"resize": "shortest", "crop_ratio": 1.0})


def merge(sources: Sequence[Mapping[str, Any]]) -> Preprocess | None:
    """Lay partial fields over each other, the most believed first; None where none says how pixels are scaled.

    Each source carries `said_by`. The one whose numbers (scale, mean, std) are used is named as the source.
    """
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        fields_said = {name: value for name, value in source.items() if name != "said_by" and value is not None}
        if ("resize" in fields_said or "size" in fields_said) and merged.get("resize_to"):
            short = merged.pop("resize_to")  # belongs to its own size; what stays is the margin around the crop
            if "size" in merged:
                merged["crop_ratio"] = max(merged["size"]) / short
        merged |= fields_said
        if {"scale", "mean", "std"} & set(source):
            merged["source"] = source["said_by"]
    if "scale" not in merged or "size" not in merged:
        return None
    if merged.get("dtype") == "uint8":  # pixels go in as they are, whatever a preset says of other inputs
        merged |= {"scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    ratio = merged.pop("crop_ratio", 1.0)
    if merged.get("resize") == "shortest" and not merged.get("resize_to"):
        merged["resize_to"] = int(max(merged["size"]) / ratio)
    if merged.get("resize", "stretch") != "shortest":
        merged["resize_to"] = None
    return Preprocess.from_dict(merged)
