"""Made benchmarks in the file layout of the real ones: drawn pictures, real lists."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from builders import class_folders, drawn, photo_folder

from distilltool.truth import Figure

GND: list[dict[str, Any]] = [
    {"bbx": [4.5, 2.0, 40.0, 31.6], "easy": [0, 3], "hard": [5], "junk": [1]},
    {"bbx": [0.0, 0.0, 24.0, 40.0], "easy": [], "hard": [2, 6], "junk": []},
    {"bbx": [10.0, 8.0, 48.0, 40.0], "easy": [4], "hard": [], "junk": [0, 7]},
]


def write(path: Path, number: int, size: tuple[int, int] = (48, 40)) -> Path:
    """A drawn picture, another one for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn(number, size, seed=5).save(path)
    return path


def revisited(root: Path, name: str, protocol: int = 2) -> Path:
    """Three queries and a database of eight, as revisitop lays them out."""
    database, queries = [f"all_souls_{at:06d}" for at in range(8)], [f"oxford_{at:06d}" for at in range(3)]
    for at, one in enumerate([*database, *queries]):
        write(root / name / "jpg" / f"{one}.jpg", at)
    gnd = {"gnd": GND, "imlist": database, "qimlist": queries}
    (root / name / f"gnd_{name}.pkl").write_bytes(pickle.dumps(gnd, protocol=protocol))
    return root / name


def sop(root: Path) -> Path:
    """Two products of three photographs and one of two."""
    rows = ["image_id class_id super_class_id path"]
    for at, label in enumerate((11319, 11319, 11319, 11320, 11320, 11320, 11321, 11321)):
        path = f"{('bicycle', 'chair')[label % 2]}_final/{label}_{at}.JPG"
        write(root / path, at)
        rows.append(f"{59552 + at} {label} {1 + label % 2} {path}")
    (root / "Ebay_test.txt").write_text("\n".join(rows) + "\n")
    return root


def cub200(root: Path) -> Path:
    """Birds of four classes, two of which are for training."""
    images, labels = [], []
    for at, label in enumerate((1, 100, 101, 101, 101, 200, 200, 200)):
        path = f"{label:03d}.A_bird/A_Bird_{at:04d}.jpg"
        write(root / "images" / path, at)
        images.append(f"{at + 1} {path}")
        labels.append(f"{at + 1} {label}")
    (root / "images.txt").write_text("\n".join(images) + "\n")
    (root / "image_class_labels.txt").write_text("\n".join(labels) + "\n")
    return root


def inshop(root: Path) -> Path:
    """Clothes: one item for training, two with queries, one of the gallery alone."""
    rows = []
    for at, (item, role) in enumerate(
        [(1, "train"), (2, "query"), (2, "query"), (2, "gallery"), (7, "query"), (7, "gallery"), (7, "gallery")]
        + [(9, "gallery")]
    ):
        path = f"img/WOMEN/Dresses/id_{item:08d}/{at:02d}_1_front.jpg"
        write(root / "Img" / path, at)
        rows.append(f"{path:<70} id_{item:08d} {role}")
    (root / "Eval").mkdir()
    head = f"{len(rows)}\nimage_name item_id evaluation_status\n"
    (root / "Eval" / "list_eval_partition.txt").write_text(head + "\n".join(rows) + "\n")
    return root


def ukbench(root: Path) -> Path:
    """Two objects in four photographs each."""
    for at in range(8):
        write(root / "full" / f"ukbench{at:05d}.jpg", at)
    return root


def gldv2(root: Path) -> Path:
    """Six index images, a public, a private and an ignored query."""
    index, test = [f"{at:x}" * 16 for at in range(6)], [f"{at:x}" * 16 for at in range(10, 13)]
    for folder, names in (("index", index), ("test", test)):
        for name in names:
            write(root / folder / name[0] / name[1] / name[2] / f"{name}.jpg", int(name[0], 16))
    rows = [f"{test[0]},{index[0]} {index[3]},Private", f"{test[1]},None,Ignored", f"{test[2]},{index[5]},Public"]
    (root / "retrieval_solution_v2.1.csv").write_text("id,images,Usage\n" + "\n".join(rows) + "\n")
    return root


def paired(root: Path) -> Path:
    """Twelve frames of a walk twice, with the list that VPR-Bench has of who shows the same place."""
    for at in range(12):
        write(root / "query" / f"{at:07d}.jpg", at)
        write(root / "ref" / f"{at:07d}.jpg", at, size=(52, 40))
    rows = np.empty((12, 2), object)
    for at in range(12):
        rows[at] = [at, [one for one in range(at - 1, at + 2) if 0 <= one < 12]]
    np.save(root / "ground_truth_new.npy", rows, allow_pickle=True)
    return root


def folders(root: Path) -> Path:
    """Two classes of three."""
    class_folders(root, classes=2, each=3)
    return root


def csv(root: Path) -> Path:
    """The same as a CSV in UTF-8 with a byte order mark."""
    paths = class_folders(root, classes=2, each=3)
    rows = [f"{path.relative_to(root)},{path.parent.name},both" for path in paths]
    (root / "set.csv").write_text("\ufeffpath,label,role\n" + "\n".join(rows))
    return root / "set.csv"


def unlabelled(root: Path) -> Path:
    """Six pictures."""
    photo_folder(root, 6)
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "csv": csv,
    "cub200": cub200,
    "folders": folders,
    "gldv2": gldv2,
    "inshop": inshop,
    "paired": paired,
    "roxford5k": lambda root: revisited(root, "roxford5k"),
    "rparis6k": lambda root: revisited(root, "rparis6k"),
    "sop": sop,
    "ukbench": ukbench,
    "unlabelled": unlabelled,
}
DEFAULT = ["map", "map@r", "recall@1", "recall@5", "recall@10"]
LEVELS = [f"{one}-{level}" for level in ("easy", "medium", "hard") for one in ("map", "mp@1", "mp@5", "mp@10")]
# queries, gallery, figures
EXPECTED: dict[str, tuple[int, int, list[str]]] = {
    "csv": (6, 6, DEFAULT),
    "cub200": (6, 6, ["recall@1", "recall@2", "recall@4", "recall@8", "r-precision", "map@r"]),
    "folders": (6, 6, DEFAULT),
    "gldv2": (2, 6, ["map@100-private", "map@100-public"]),
    "inshop": (3, 4, ["recall@1", "recall@10", "recall@20", "recall@30", "map@r"]),
    "paired": (12, 12, ["recall@1", "recall@5", "recall@10"]),
    "roxford5k": (3, 8, LEVELS),
    "rparis6k": (3, 8, LEVELS),
    "sop": (8, 8, ["recall@1", "recall@10", "recall@100", "recall@1000", "map@r"]),
    "ukbench": (8, 8, ["ns", "map"]),
    "unlabelled": (6, 6, []),
}


def named(figures: tuple[Figure, ...]) -> list[str]:
    """What reports call some figures."""
    return [one.name for one in figures]
