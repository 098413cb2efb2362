"""The student: backbone, head and length 1, from bytes to vectors; saved and loaded without pickles."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from distilltool.embedder import Embedder
from distilltool.errors import DistillError
from distilltool.preprocess import Preprocess
from distilltool.students import Backbone

BATCH = 64  # images embedded at once, at most
PIXELS = 64 * 160 * 160  # of all of them
FORM = 2  # of the network around the backbone, since features are centred


class Student(nn.Module):
    """Pixels of 0 to 255, (N, 3, H, W) of any dtype → vectors of length 1, (N, D).

    Pooled features are brought to length 1 and their mean over the images is taken off, which is what a head, and where
    there is none the comparison itself, starts from: common to all images, it tells nothing of any.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, backbone: Backbone, dim: int, bias: bool) -> None:
        """dim: length of the vectors made by a linear head; 0 for the pooled features as they are."""
        super().__init__()
        self.backbone = backbone.module
        self.head: nn.Module = nn.Linear(backbone.width, dim, bias=bias) if dim else nn.Identity()
        self.anchor: nn.Linear | None = None  # while training only: features onto the teacher's vectors
        self.centre = nn.Parameter(torch.zeros(backbone.width))
        self.width = backbone.width
        self.dim = dim or backbone.width
        self.has_head = bool(dim)
        self.register_buffer("factor", 1 / (255 * torch.tensor(backbone.std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer(
            "shift", (torch.tensor(backbone.mean) / torch.tensor(backbone.std)).view(1, 3, 1, 1), persistent=False
        )

    @property
    def linear(self) -> nn.Linear:
        """The head; only where there is one."""
        assert isinstance(self.head, nn.Linear)
        return self.head

    def map_by(self, weight_EF: Tensor, bias_E: Tensor) -> None:
        """Make vectors of the features by this linear head, instead of what made them before."""
        self.head = nn.Linear(self.width, len(bias_E)).to(self.factor.device)
        with torch.no_grad():
            self.linear.weight.copy_(weight_EF)
            self.linear.bias.copy_(bias_E)
        self.dim, self.has_head = len(bias_E), True

    def features(self, pixels_NCHW: Tensor) -> Tensor:
        """Pooled features of the backbone, (N, width), at length 1."""
        features: Tensor = self.backbone(pixels_NCHW.float() * self.factor - self.shift)
        return F.normalize(features.float(), dim=1)

    def centred(self, pixels_NCHW: Tensor) -> Tensor:
        """Features less their mean, (N, width)."""
        return self.features(pixels_NCHW) - self.centre

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return F.normalize(self.head(self.centred(pixels_NCHW)), dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentCard:
    """What it takes to rebuild a student and to know its space; kept as JSON beside its weights. form: of the network
    around the backbone, which changed between versions; dims: lengths at which its vectors are of use when cut."""

    spec: str
    input: tuple[int, int]
    dim: int
    head: int
    bias: bool
    space: str
    space_id: str
    start: str
    params: int
    preprocess: Preprocess
    form: int = 1
    dims: tuple[int, ...] = ()


class TorchEmbedder(Embedder):
    """A student in torch behind the same face as an ONNX file."""

    def __init__(self, student: Student, card: StudentCard, name: str) -> None:
        self.student = student.eval()
        self.card = card
        self._name = name

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name

    @property
    def dim(self) -> int | None:
        """Length of a vector."""
        return self.student.dim

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared."""
        return self.card.preprocess

    @property
    def space_id(self) -> str:
        """The space of its vectors."""
        return self.card.space_id

    def viewed(self, preprocess: Preprocess) -> "TorchEmbedder":
        """The same student shown its images in another way; DistillError where its network takes no such size."""
        height, width = preprocess.size
        try:
            embed(self.student, np.zeros((1, height, width, 3), np.uint8))
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:  # each network its own
            said = (str(error) or type(error).__name__).split("\n")[0]
            raise DistillError(
                f"{self.name} cannot be shown images of {height}x{width} ({said})",
                "leave --scales away (--flip works)",
            ) from None
        return TorchEmbedder(self.student, replace(self.card, preprocess=preprocess), self.name)

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed prepared images, (N, H, W, 3) uint8 → (N, D) float32 of length 1."""
        return embed(self.student, images_NHWC)


def to_pixels(images_NHWC: NDArray[np.uint8]) -> Tensor:
    """Images as torch sees them, (N, 3, H, W) uint8 in channels-last memory."""
    return torch.tensor(images_NHWC).permute(0, 3, 1, 2)


@torch.inference_mode()
def embed(student: Student, images_NHWC: NDArray[np.uint8], *, features: bool = False) -> NDArray[np.float32]:
    """Embed in evaluation mode, (N, H, W, 3) uint8 → (N, D) float32; or the pooled features, (N, width).

    As many images at once as have `PIXELS` together, at most `BATCH`: large ones would take gigabytes.
    """
    training = student.training
    student.eval()
    device = student.factor.device
    step = student.features if features else student
    batch = max(1, min(BATCH, PIXELS // int(np.prod(images_NHWC.shape[1:3]))))
    parts = [
        step(to_pixels(images_NHWC[at : at + batch]).to(device)).float().cpu().numpy()
        for at in range(0, len(images_NHWC), batch)
    ]
    student.train(training)
    return np.concatenate(parts)


def cut(vectors_ND: Tensor, dim: int) -> Tensor:
    """The first `dim` numbers of vectors of length 1, at length 1, (N, dim); as they are where they have no more."""
    return vectors_ND if vectors_ND.shape[1] == dim else F.normalize(vectors_ND[:, :dim], dim=1)


def own_space_id(student: Student) -> str:
    """Name the space of a student that is like no other: by its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(student.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return "own-" + digest.hexdigest()[:16]
