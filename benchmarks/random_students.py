"""Whether any student can be exported: random architectures and imported graphs, each through the whole of `export`.

    python benchmarks/random_students.py --models $DATA/models --json benchmarks/results/random_students.json
    python benchmarks/random_students.py --count 5                                    # without files, in a minute

Students are drawn by seed: half from timm's registry (at most 30 M weights), half from ONNX files (those of --models,
and small timm networks written by both of PyTorch's exporters), cut, narrowed, at random sizes, lengths and seeds; what
starts from scratch is made random throughout. Each is put into a finished run, read from
there, exported (parity at three batch sizes with onnxruntime, the card, golden pictures), opened again as any ONNX file
is, and its bundle verified. A student that cannot be built is another's draw, if what is said is one line that names
what to do.
"""

import argparse
import contextlib
import importlib.util
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distilltool
from distilltool import images, students, train
from distilltool.errors import DistillError
from distilltool.imported import scaled
from distilltool.progress import Silent
from distilltool.rundir import RunDir, read_json, write_bytes, write_json
from distilltool.sources import named, open_source
from distilltool.stages.distill import load_student
from distilltool.student import FORM, Student, StudentCard, embed, own_space_id, to_pixels
from distilltool.students import Start
from distilltool.students.timm import _library
from distilltool.teacher import open_teacher

ROOT = Path(__file__).parents[1]
SIDES = (64, 96, 128, 160, 224)
LENGTHS = (0, 0, 32, 128, 512)  # 0: the features as they are
MOST = 30e6  # weights
WRITTEN = ("resnet18", "mobilenetv3_small_050", "efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto")
TRIES = 20  # draws for one student
AT_ONCE = 20  # images


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What came of one. refused: draws before it that could not be built, and why; problem: empty where all is well."""

    seed: int
    spec: str
    input: int
    dim: int
    params: int
    refused: tuple[str, ...]
    problem: str
    seconds: float


class Maker:
    """A finished run that others are made like, and the files that students can be made of.

    models: ONNX files; written: timm networks that are written as such.
    """

    def __init__(self, folder: Path, models: Sequence[Path], written: Sequence[str] = WRITTEN) -> None:
        self.folder = folder
        self.teacher = open_teacher(ROOT / "examples" / "teacher.onnx")
        self.run = _template(folder)
        self.photos = sorted((folder / "examples").rglob("*.jpg"))
        self.sources = {f"onnx:{path}": _source(path, self.teacher, self.photos) for path in models}
        for path in _written(folder, written):
            self.sources[f"onnx:{path}"] = _source(path, self.teacher, self.photos, guess=False)

    def check(self, seed: int) -> Found:
        """Draw a student, and take it all the way."""
        began, rng, refused = time.perf_counter(), np.random.default_rng(seed), list[str]()
        for _ in range(TRIES):
            spec, side, length = self._drawn(rng)
            try:
                backbone = self._built(spec, side, seed)
            except DistillError as error:
                refused.append(f"{named(spec)} at {side}: {error}")
                continue
            break
        else:
            raise RuntimeError(f"no student in {TRIES} draws: {refused}")
        student = Student(backbone, length, bias=bool(rng.integers(2)))
        rows, _ = images.load(self.photos, self.teacher.preprocess.at(scaled(self.teacher.preprocess.size, side)))
        if backbone.start == "scratch":
            _unlike(student, to_pixels(rows), seed)
        with torch.no_grad():  # as distill does; untrained networks see little else than what is common to all images
            student.centre.copy_(torch.tensor(embed(student, rows, features=True).mean(axis=0)))
        run = RunDir(self.folder / f"run{seed}")
        card = self._write(run, student, backbone, spec, side)
        try:
            problem = _whole_way(run, student, card)
        except DistillError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  what went wrong is what is asked
            problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        shutil.rmtree(run.root)
        return Found(
            seed=seed,
            spec=card.spec,
            input=side,
            dim=card.dim,
            params=card.params,
            refused=tuple(refused),
            problem=problem,
            seconds=round(time.perf_counter() - began, 1),
        )

    def _drawn(self, rng: np.random.Generator) -> tuple[str, int, int]:
        side, length = int(rng.choice(SIDES)), int(rng.choice(LENGTHS))
        if rng.random() < 0.5:
            return f"timm:{rng.choice(_library().list_models())}", side, length
        spec = str(rng.choice(list(self.sources)))
        if rng.random() < 0.7:
            spec += f",cut={rng.choice([0.3, 0.5, 0.7, 0.9])}"
        if rng.random() < 0.3:
            spec += f",width={rng.choice([0.5, 0.75])}"
        return spec, side, length

    def _built(self, spec: str, side: int, seed: int) -> students.Backbone:
        kind, _, name = spec.partition(":")
        if kind == "timm":
            weights = _weights_of(name)
            if weights > MOST:
                raise DistillError(f"{weights / 1e6:.0f} M weights", "not a compact student")
        return students.build(
            spec,
            Start(
                input=side,
                seed=seed,
                source=self.sources.get(spec.partition(",")[0]),
                prepared=self.teacher.preprocess,
                photos=tuple(self.photos),
            ),
        )

    def _write(self, run: RunDir, student: Student, backbone: students.Backbone, spec: str, side: int) -> StudentCard:
        """The run as `distill` leaves it."""
        shutil.copytree(self.run.root, run.root)
        prepared = self.teacher.preprocess
        size = scaled(prepared.size, side)
        card = StudentCard(
            spec=named(spec),
            input=size,
            dim=student.dim,
            head=student.dim if student.has_head else 0,
            bias=student.has_head and student.linear.bias is not None,
            space="own",
            space_id=own_space_id(student),
            start=backbone.start,
            params=sum(one.numel() for one in student.parameters()),
            preprocess=prepared.at(size, 1.0),
            form=FORM,
        )
        train.save_weights(run.weights, student)
        if backbone.architecture is not None:
            kept = backbone.architecture
            write_bytes(run.architecture, lambda fresh: _fill(fresh, kept))
        write_json(run.card, {**asdict(card), "preprocess": card.preprocess.to_dict()})
        manifest = read_json(self.run.manifest)
        write_json(run.manifest, {**manifest, "weights_sha256": images.digest(run.weights)})
        return card


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _whole_way(run: RunDir, student: Student, card: StudentCard) -> str:
    """What went wrong, or nothing."""
    again = load_student(run)
    pictures = np.random.default_rng(0).integers(0, 256, (3, *card.input, 3)).astype(np.uint8)
    if not np.array_equal(again.embed(pictures), embed(student, pictures)):
        return "read again, it gives other vectors"
    report = distilltool.export(run.root, seconds=0.1, precision=["fp32"])
    first = report.variants[0]
    if first.status != "accepted":
        return first.reason
    found = open_teacher(run.root / "bundle" / first.file)
    if (found.dim, found.space_id, found.preprocess.size) != (card.dim, card.space_id, card.input):
        return "the file says other things of itself than the run"
    faults = distilltool.verify(run.root / "bundle").faults
    return "; ".join(str(one) for one in faults)


def _unlike(student: Student, pixels_NCHW: torch.Tensor, seed: int) -> None:
    """All that a network begins with alike is made unlike: constants would hide what an export leaves out.

    Batch-norm first takes its statistics from images, as training leaves them: with others a deep network sends all
    images to one place, where float32 cannot tell them apart.
    """
    torch.manual_seed(seed)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms = [one for one in student.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for one in student.parameters():
            if one.numel() > 1 and bool((one == one.flatten()[0]).all()):
                one.add_(0.1 * torch.randn(one.shape))
        for norm in norms:
            norm.momentum = None  # the mean of all batches
            norm.reset_running_stats()
        for at in range(0, len(pixels_NCHW) if norms else 0, AT_ONCE):
            student.train()(pixels_NCHW[at : at + AT_ONCE])
        for norm in norms:
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn(norm.running_mean.shape))
                norm.running_var.mul_(torch.empty(norm.running_var.shape).uniform_(0.7, 1.4))
    student.eval()


def _weights_of(name: str) -> int:
    """Of a timm architecture, without making them where that can be had."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            return sum(one.numel() for one in _library().create_model(name, num_classes=0).parameters())


def _source(path: Path, teacher: Any, photos: Sequence[Path], guess: bool = True) -> Any:
    """A file; prepared as ImageNet's networks are where nothing says it and it is not to be guessed, or cannot be."""
    spec = f"onnx:{path}"
    if guess:
        with contextlib.suppress(DistillError):
            return open_source(spec, teacher, False, photos, Silent())
    return open_source(f"{spec},preprocess=imagenet", teacher, False, photos, Silent())


def _written(folder: Path, names: Sequence[str]) -> list[Path]:
    """Networks as PyTorch's two exporters write them."""
    files = []
    for name in names:
        torch.manual_seed(0)
        module = _library().create_model(name, num_classes=0).eval()
        for new in (True, False):
            files.append(folder / f"{name}-{'dynamo' if new else 'torchscript'}.onnx")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                how: dict[str, Any] = (
                    {"external_data": False, "dynamic_shapes": {"x": {0: torch.export.Dim("batch")}}}
                    if new
                    else {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]}
                )
                torch.onnx.export(module, (torch.randn(2, 3, 224, 224),), files[-1], dynamo=new, verbose=False, **how)
    return files


def _template(folder: Path) -> RunDir:
    """A run that was distilled, a little, on drawn images."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "examples" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = generate
    spec.loader.exec_module(generate)
    for instance, view, name in [job for job in generate.jobs() if job[2].startswith("imgs/")][:40]:
        (folder / "examples" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "examples" / name).write_bytes(generate.render_jpeg(instance, view))
    distilltool.distill(
        ROOT / "examples" / "teacher.onnx",
        folder / "examples" / "imgs",
        student="timm:test_efficientnet",
        input_size=64,
        out=folder / "template",
        store=folder / "ledger.sqlite",
        changes=["schedule.epochs=1", "schedule.batch=16"],
    )
    return RunDir(folder / "template")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone")
    parser.add_argument("--models", type=Path, help="folder of ONNX files")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    every = list[Found]()
    with tempfile.TemporaryDirectory() as name:
        maker = Maker(Path(name), sorted(args.models.glob("*.onnx")) if args.models else [])
        for seed in args.seeds or range(args.first, args.first + args.count):
            every.append(maker.check(seed))
            one = every[-1]
            print(f"{seed}: {one.spec} at {one.input}, {one.seconds} s {one.problem or 'well'}", flush=True)
            if args.json:
                kinds = Counter(found.spec.partition(":")[0] for found in every)
                wrong = [found.spec for found in every if found.problem]
                said = {"kinds": kinds, "wrong": wrong, "students": [asdict(found) for found in every]}
                args.json.write_text(json.dumps(said, indent=1) + "\n")
    print(f"{sum(not one.problem for one in every)} of {len(every)} well")


if __name__ == "__main__":
    main()
