"""A small fixed description of an image, for choosing images where no pretrained network is at hand."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64  # pixels that are looked at, each way
CELLS = 4  # parts of the image, each way
ANGLES = 8  # directions of the gradient, light to dark and dark to light apart
WIDTH = CELLS**2 * (ANGLES + 3)


def describe(image: Image.Image) -> NDArray[np.float32]:
    """Where an RGB image has which edges and colours, (176,) of length 1 or less.

    Sixteen cells; in each a histogram of gradient directions weighted by strength, and the mean colour. Square roots,
    so that one strong edge does not drown the rest. After HOG (Dalal & Triggs, CVPR 2005) and tiny images (Torralba,
    Fergus & Freeman, PAMI 2008).
    """
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    down, across = np.gradient(pixels.mean(axis=2))
    strength = np.hypot(down, across)
    angle = np.floor((np.arctan2(down, across) / (2 * np.pi) + 0.5) * ANGLES).astype(np.int64) % ANGLES
    row, column = np.indices((SIDE, SIDE)) * CELLS // SIDE
    place = (row * CELLS + column) * ANGLES + angle
    edges = np.sqrt(np.bincount(place.ravel(), strength.ravel(), CELLS**2 * ANGLES))
    step = SIDE // CELLS
    colours = pixels.reshape(CELLS, step, CELLS, step, 3).mean(axis=(1, 3)).ravel()
    parts = [part / max(float(np.linalg.norm(part)), 1e-6) for part in (edges, colours - colours.mean())]
    return np.concatenate(parts).astype(np.float32) / np.float32(np.sqrt(2))
