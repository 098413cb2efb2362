"""Search a folder of images by an image, with a bundle and faiss: nothing else of ours is needed.

    python examples/search.py BUNDLE index IMAGES --index index.faiss
    python examples/search.py BUNDLE query photo.jpg --index index.faiss

The space of the vectors and the file names are kept beside the index, in index.faiss.json. Vectors of different spaces
cannot be compared, so an index of another space is refused. Needs onnxruntime, numpy, Pillow and faiss-cpu.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
BATCH, NEAREST = 32, 10
TIMED = 20  # queries after the first, which also makes buffers


def build(deploy: Any, student: Any, folder: Path, file: Path) -> None:
    """Embed every image below `folder` and write the index, inner products of unit vectors, which are cosines."""
    index, names, rows = faiss.IndexFlatIP(student.session.get_outputs()[0].shape[1]), list[str](), list[Any]()
    for path in sorted(one for one in folder.rglob("*") if one.suffix.lower() in SUFFIXES):
        try:
            rows.append(pixels_of(deploy, student, path))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            print(f"left out: {path}: {error}", file=sys.stderr)
            continue
        names.append(path.relative_to(folder).as_posix())
        if len(rows) == (BATCH if student.spec else 1):  # decoded images are of one size only by chance
            index.add(embed(student, rows))
            rows.clear()
    if rows:
        index.add(embed(student, rows))
    if not names:
        sys.exit(f"there is no image in {folder}")
    faiss.write_index(index, str(file))
    said = {"space_id": student.space_id, "files": names}
    beside(file).write_text(json.dumps(said), "utf-8")
    print(f"{index.ntotal} images in {file}")


def query(deploy: Any, student: Any, photo: Path, file: Path) -> None:
    """Print the nearest images with their cosines, and the median time of each part from the bytes to the answer."""
    said = json.loads(beside(file).read_text("utf-8"))
    if said["space_id"] != student.space_id:
        sys.exit(f"{file} holds vectors of the space {said['space_id']}, the bundle makes {student.space_id}")
    index, data, times = faiss.read_index(str(file)), photo.read_bytes(), []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        pixels = pixels_of(deploy, student, data)
        decoded = time.perf_counter()
        vector = embed(student, [pixels])
        embedded = time.perf_counter()
        cosines, places = index.search(vector, min(NEAREST, index.ntotal))
        times.append((decoded - began, embedded - decoded, time.perf_counter() - embedded))
    for cosine, place in zip(cosines[0], places[0], strict=True):
        print(f"{cosine:.4f}  {said['files'][place]}")
    parts = [*np.median(times[1:], axis=0), np.median(np.sum(times[1:], axis=1))]
    names = ("decode and resize", "embed", "search", "from bytes to answer")
    told = ", ".join(f"{name} {1000 * part:.2f} ms" for name, part in zip(names, parts, strict=True))
    print(f"{told} (medians of {TIMED})", file=sys.stderr)


def pixels_of(deploy: Any, student: Any, source: Path | bytes) -> Any:
    """An image as the file takes it, (H, W, 3) uint8: resized, unless the file does so itself (student.any.onnx)."""
    image = deploy.open_rgb(source)
    return deploy.resize(image, student.spec) if student.spec else np.asarray(image)


def embed(student: Any, rows: list[Any]) -> Any:
    """Prepared images, each (H, W, 3) uint8 → (N, D) float32 of length 1."""
    return student.session.run(None, {student.session.get_inputs()[0].name: np.stack(rows)})[0]


def beside(index: Path) -> Path:
    """Where the space and the names of an index are."""
    return index.with_name(f"{index.name}.json")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Search a folder of images by an image.")
    parser.add_argument("bundle", type=Path, help="what distilltool export wrote")
    parser.add_argument("what", choices=("index", "query"))
    parser.add_argument("images", type=Path, help="the folder to index, or the image to look for")
    parser.add_argument("--index", type=Path, default=Path("index.faiss"))
    parser.add_argument("--model", default="student.onnx", help="the file of the bundle to run")
    args = parser.parse_args()
    sys.path.insert(0, str(args.bundle))
    import deploy  # the bundle's own

    student = deploy.Student(args.bundle / args.model)
    (build if args.what == "index" else query)(deploy, student, args.images, args.index)


if __name__ == "__main__":
    main()
