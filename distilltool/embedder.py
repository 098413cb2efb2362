"""What turns images into vectors, be it the teacher, a student in training or an exported one."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError
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

    def viewed(self, preprocess: Preprocess) -> "Embedder":
        """The same model shown its images in another way; DistillError where it cannot be."""
        raise _no_views(self.name)


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

    def viewed(self, preprocess: Preprocess) -> "Teacher":
        """As an embedder's; answers are kept under the new preprocessing."""
        raise _no_views(self.name)


def _no_views(name: str) -> DistillError:
    return DistillError(
        f"{name} holds vectors of images as they are, of which it cannot be asked for other views",
        "leave --scales and --flip away",
    )


def one_size(name: str, size: tuple[int, int] | None, preprocess: Preprocess) -> None:
    """Raise DistillError where a model takes images of `size` alone and is to be shown others."""
    if size is not None and (preprocess.size != size or preprocess.zoom != 1):
        raise DistillError(
            f"{name} takes images of {size[0]}x{size[1]} alone and cannot be shown other sizes",
            "leave --scales away (--flip works), or export it with free height and width",
        )


def by_shape(images: Sequence[NDArray[np.uint8]]) -> list[list[int]]:
    """Places of prepared images that can share a batch: those of one shape, in order."""
    found: dict[tuple[int, ...], list[int]] = {}
    for at, image in enumerate(images):
        found.setdefault(image.shape, []).append(at)
    return list(found.values())


def embed_all(model: Embedder, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Embed prepared images, each (H, W, 3), in one batch for each shape → (N, D) float32 in their order."""
    groups = by_shape(images)
    vectors = np.concatenate([model.embed(np.stack([images[at] for at in group])) for group in groups])
    order = np.argsort(np.concatenate([np.asarray(group) for group in groups]))
    found: NDArray[np.float32] = vectors[order]
    return found


def unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1; a row of zeros stays zeros."""
    # in float64, as 1e20 squared is no float32
    length = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))[:, None]
    scaled: NDArray[np.float32] = (vectors_ND / np.maximum(length, 1e-12)).astype(np.float32)
    return scaled
