"""What a bundle holds beside the graph: how the Hugging Face hub describes a model, hashes, and vectors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilltool import images
from distilltool.any_size import whole_sides
from distilltool.deploy import RESAMPLE
from distilltool.preprocess import Preprocess
from distilltool.rundir import write_text

if TYPE_CHECKING:
    from distilltool.student import StudentCard

SUMS = "SHA256SUMS"
UNSEALED = ("card.md", SUMS)  # whoever ships the bundle fills in the card


def preprocessor_config(how: Preprocess) -> dict[str, Any]:
    """`preprocessor_config.json` as image processors of the hub read it; scaling and normalisation are in the graph.

    A stretched cut is said as they can: resized larger, then cut from the middle.
    """
    # CLIP's processor alone stretches, keeps proportions and cuts in transformers 4 and 5: ViT's neither cuts nor keeps
    # proportions in 4. Checked by AutoImageProcessor of 4.50.3 and 5.23.0, with Pillow and with torchvision (5): within
    # 2 of 255 of ours where margins are whole; an odd margin is divided otherwise, which moves the cut by a pixel
    height, width = how.size
    said: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": RESAMPLE[how.interpolation],
        "do_rescale": False,
        "do_normalize": False,
    }
    if how.resize == "shortest":
        size: dict[str, int] = {"shortest_edge": int(how.resize_to or min(how.size))}
    else:
        size = dict(zip(("height", "width"), whole_sides(how), strict=True))
    cut = size != {"height": height, "width": width}
    return {**said, "size": size, "do_center_crop": cut, "crop_size": {"height": height, "width": width}}


def config(card: "StudentCard", teacher_sha256: str, version: str) -> dict[str, Any]:
    """`config.json`: what the hub shows of a model and libraries look up."""
    return {
        "model_type": "distilltool",
        "library_name": "onnxruntime",
        "pipeline_tag": "image-feature-extraction",
        "architecture": card.spec,
        "hidden_size": card.dim,
        "image_size": list(card.input),
        "num_channels": 3,
        "normalized_embeddings": True,
        "space_id": card.space_id,
        "nested_sizes": list(card.dims),
        "teacher_sha256": teacher_sha256,
        "distilltool_version": version,
    }


def files(bundle: Path) -> list[Path]:
    """Everything in a bundle that is sealed, in order."""
    found = (path for path in sorted(bundle.rglob("*")) if path.is_file())
    return [path for path in found if path.relative_to(bundle).as_posix() not in UNSEALED]


def seal(bundle: Path) -> None:
    """Write the hashes of all files but the card, as `sha256sum -c` reads them."""
    lines = [f"{images.digest(path)}  {path.relative_to(bundle).as_posix()}\n" for path in files(bundle)]
    write_text(bundle / SUMS, "".join(lines))


def sealed(bundle: Path) -> dict[str, str]:
    """Hashes by name, as they were written; lines that are none are left out."""
    lines = (bundle / SUMS).read_text("utf-8").splitlines()
    split = (line.split("  ", 1) for line in lines)
    return {parts[1]: parts[0] for parts in split if len(parts) == 2}
