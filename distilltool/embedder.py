"""What turns images into vectors, be it the teacher, a student in training or an exported one."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distilltool.ledger import TeacherKey
from distilltool.preprocess import Preprocess


class Embedder(Protocol):
    """Anything that embeds images; the same code evaluates all of them.

    name: for tables. dim: length of a vector, None where a teacher has not said it yet.
    space_id: vectors may be compared where it is equal. parameters: weights, 0 where unknown.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int | None: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def space_id(self) -> str: ...

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed images made by `preprocess.prepare`, (N, H, W, 3) uint8 → (N, D) float32, not normalised."""
        ...


class Teacher(Embedder, Protocol):
    """What is asked and paid for: an ONNX file, a server, or answers bought elsewhere.

    key: which answers in a ledger are this teacher's. where: path or address. size_bytes: of its file, 0 where there is
    none. provider: what computes the answers. why: how its output came to be chosen. batch: the one number of images it
    takes at once, None where that is free.
    """

    @property
    def key(self) -> TeacherKey: ...
    @property
    def where(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def provider(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def batch(self) -> int | None: ...


def unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1; a row of zeros stays zeros."""
    # in float64, as 1e20 squared is no float32
    length = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))[:, None]
    scaled: NDArray[np.float32] = (vectors_ND / np.maximum(length, 1e-12)).astype(np.float32)
    return scaled
