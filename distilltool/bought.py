"""Files of vectors, each with the path or the hash of its image: answers bought elsewhere as a teacher of its own, and
models to measure of which nothing else is at hand."""

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilltool.embedder import Teacher
from distilltool.errors import DistillError, Exit
from distilltool.images import Inventory, digest
from distilltool.ledger import TeacherKey
from distilltool.names import counted
from distilltool.preprocess import Preprocess, merge, parse_flags
from distilltool.teacher import TeacherOptions, space_id

HASHES, PATHS, VECTORS = ("sha256",), ("path", "paths"), ("vector", "vectors")
SPACE = "space_id"
SAME = 1e-3  # two answers about one image may differ by this share of their length, as a service's rounding makes them
FIELD = 1 << 24  # characters in a field of a CSV: a vector of many thousand numbers written as JSON
# an ordinary view: whoever sold the answers knows how the images were prepared, we do not
VIEW = {"size": (224, 224), "resize": "stretch", "scale": 1.0, "said_by": "default"}
LAYOUT = (
    "it needs a column path or sha256, and a column vector or one column a number (.npz: arrays paths or sha256, "
    "and vectors; .npy: beside it the .json that export writes)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What a file holds, as it holds it. names: one a row, paths or, where `hashed`, sha256 in hex. lengths: (N,)
    how many numbers each row has; numbers: all of them one after the other, float32. space: the space_id that the file
    claims, empty where it says nothing."""

    names: tuple[str, ...]
    hashed: bool
    lengths: NDArray[np.int64]
    numbers: NDArray[np.float32]
    space: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """The answers that belong to images at hand. rows: the row of each image by its `key`; unmatched: rows of no image.

    A row names a file. Where a part of it is asked about, as a benchmark's queries are, it is taken to be of that part.
    """

    rows: dict[bytes, int]
    unmatched: int


class BoughtTeacher(Teacher):
    """A file of answers; it can be looked up but not asked."""

    def __init__(self, path: Path, sha256: str, table: Table, preprocess: Preprocess) -> None:
        self.path = path
        self.table = table
        self._sha256 = sha256
        self._preprocess = preprocess

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def where(self) -> str:
        """The file's absolute path."""
        return str(self.path.resolve())

    @property
    def size_bytes(self) -> int:
        """0: the model that answered is not here."""
        return 0

    @property
    def why(self) -> str:
        """How the vectors were come by."""
        return "bought elsewhere"

    @property
    def batch(self) -> int | None:
        """None: nothing is asked."""
        return None

    @property
    def dim(self) -> int | None:
        """Length of a vector, None while the rows disagree."""
        lengths = self.table.lengths
        return int(lengths[0]) if len(lengths) and (lengths == lengths[0]).all() else None

    @property
    def preprocess(self) -> Preprocess:
        """The view of an image that the student is given."""
        return self._preprocess

    @property
    def provider(self) -> str:
        """What is recorded as the answers' origin."""
        return "imported"

    @property
    def space_id(self) -> str:
        """The space of these vectors at length 1 as the file says it, else a name that no other file's has."""
        return self.table.space or space_id(self._sha256, self.key.output, self.key.pool)

    @property
    def key(self) -> TeacherKey:
        """Which answers in a ledger came out of this file; the student's view of the images changes none of them."""
        return TeacherKey(sha256=self._sha256, output="vector", pool="none", preprocess="{}", source=self.why)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """All rows, (N, D) float32, once `match` has found nothing wrong with them."""
        return self.table.numbers.reshape(len(self.table.names), -1)

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raises DistillError: nobody can be asked."""
        raise DistillError(
            f"{self.path} holds answers bought elsewhere and cannot be asked for more", "give images it has answers for"
        )

    def match(self, stock: Inventory, root: Path) -> Matched:
        """Find each row's image among those at hand; everything that is wrong with the file is one DistillError.

        root: the folder the images were looked for in. A path may be absolute, or seen from `root`, the folder that
        holds it, the file's own folder, or the working folder.
        """
        faults = _faults(self.table)
        if self.table.hashed:
            found, unclear = _by_hash(self.table, stock)
        else:
            found, unclear = _by_path(self.table, stock, (root, root.absolute().parent, self.path.parent, Path()))
        if unclear:
            faults.append(f"{counted(len(unclear), 'path')} could mean several images, as {unclear[0]!r}")
        rows: dict[bytes, int] = {}
        ends = np.cumsum(self.table.lengths)
        again = [(first, row) for row, image in found.items() if (first := rows.setdefault(image, row)) != row]
        clashes = [pair for pair in again if not _alike(self.table, ends, *pair)]
        if clashes:
            first, second = clashes[0]
            faults.append(f"{counted(len(clashes), 'row')} contradict others, as row {second + 1} does row {first + 1}")
        if not faults and not rows:
            faults.append(_none_matches(self.table, root))
        if faults:
            raise DistillError(
                f"{self.path} cannot be used ({'; '.join(faults)})", "mend the file; nothing of it was taken"
            )
        return Matched(rows=rows, unmatched=len(self.table.names) - len(found))

    def of(self, keys: Sequence[bytes], paths: Sequence[Path], stock: Inventory, root: Path) -> NDArray[np.float32]:
        """The vectors of some images, (N, D) float32, by the `key` of each; DistillError where one has none.

        paths: of the same images, for the message. stock, root: as of `match`.
        """
        rows = self.match(stock, root).rows
        missing = [path for key, path in zip(keys, paths, strict=True) if key not in rows]
        if missing:
            count = f"{len(missing):,} of {counted(len(keys), 'image')}"
            raise DistillError(
                f"{self.path} has no vector for {count}, the first is {missing[0]}",
                "a model is measured on all of them: add their rows, or give data that the file covers",
            )
        found: NDArray[np.float32] = self.vectors[[rows[key] for key in keys]]
        return found


def is_vectors(path: Path) -> bool:
    """Whether a path names a file of vectors, by its ending."""
    return path.suffix.lower() in READERS


def open_bought(path: Path, options: TeacherOptions) -> BoughtTeacher:
    """Read a file of answers: .parquet, .npz or .csv, or the .npy of a bundle.

    Raises DistillError where it cannot be read; what its rows hold is judged by `match`, beside the images.
    """
    if not path.is_file():
        raise DistillError(f"there is no file {path}", "check the path of the vectors")
    if not is_vectors(path):
        raise DistillError(f"{path} is no file of vectors", f"its ending must be {', '.join(READERS)}", Exit.USAGE)
    if options.output or options.pool:
        raise DistillError(
            f"{path} holds finished vectors", "leave --output and --pool away: they are for models", Exit.USAGE
        )
    view = merge([parse_flags(options.preprocess), VIEW])
    assert view is not None
    source = f"flag {' '.join(options.preprocess)}" if options.preprocess else "default"
    return BoughtTeacher(path, digest(path), READERS[path.suffix.lower()](path), replace(view, source=source))


def _faults(table: Table) -> list[str]:
    """What is wrong with the rows themselves, each fault with its number of rows and the first of them."""
    faults = []

    def tell(wrong: NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            faults.append(f"{counted(int(wrong.sum()), 'row')} {what}, the first is row {int(wrong.argmax()) + 1}")

    lengths, count = np.unique(table.lengths, return_counts=True)
    usual = lengths[count.argmax()] if len(lengths) else 0
    tell(np.array([not name for name in table.names], bool), "name no image")
    if table.hashed:
        tell(np.array([bool(name) and _hash(name) is None for name in table.names], bool), "have a sha256 that is none")
    tell(table.lengths != usual, f"have not {usual} numbers as the others")
    tell(table.lengths == 0, "have no numbers at all")
    ends = np.cumsum(table.lengths)
    owner = np.repeat(np.arange(len(ends)), table.lengths)
    bad = np.bincount(owner, ~np.isfinite(table.numbers), minlength=len(ends)) > 0
    tell(bad, "hold NaN, infinity or what float32 cannot hold")
    filled = np.bincount(owner, table.numbers != 0, minlength=len(ends)) > 0
    tell(~filled & (table.lengths > 0), "are all zeros")
    return faults


def _alike(table: Table, ends: NDArray[np.int64], first: int, second: int) -> bool:
    """Whether two rows, given where each row's numbers end, are the same answer but for rounding."""
    one, other = (table.numbers[ends[row] - table.lengths[row] : ends[row]] for row in (first, second))
    if len(one) != len(other):
        return False
    return bool(np.linalg.norm(one - other) <= SAME * max(np.linalg.norm(one), np.linalg.norm(other)))


def _none_matches(table: Table, root: Path) -> str:
    if not table.names:
        return "it has no rows"
    looked = "no image has that sha256" if table.hashed else f"write paths as seen from {root}, or give sha256"
    return f"none of its {counted(len(table.names), 'row')} is one of these images, e.g. {table.names[0]!r}: {looked}"


def _hash(text: str) -> bytes | None:
    """The 32 bytes that 64 hex digits stand for."""
    try:
        value = bytes.fromhex(text.strip().removeprefix("sha256:"))
    except ValueError:
        return None
    return value if len(value) == 32 else None


def _by_hash(table: Table, stock: Inventory) -> tuple[dict[int, bytes], list[str]]:
    """The image of each row that has one, and the hashes that could mean several parts of one."""
    known: dict[bytes, set[bytes]] = {}
    for photo in stock.photos:
        known.setdefault(photo.sha256, set()).add(photo.key)
    rows = {row: value for row, name in enumerate(table.names) if (value := _hash(name)) is not None and value in known}
    unclear = [table.names[row] for row, value in rows.items() if len(known[value]) > 1]
    return {row: next(iter(known[value])) for row, value in rows.items()}, unclear


def _by_path(table: Table, stock: Inventory, roots: Sequence[Path]) -> tuple[dict[int, bytes], list[str]]:
    """The image of each row that has one, and the paths that could mean several.

    A file name alone is never enough: the same name in another folder is mostly another image, and a student trained on
    wrong pairs shows it only by being bad.
    """
    spelt = (os.path.abspath, os.path.realpath)  # a folder may be reached through a link or as what it links to
    images_of = [(path, image) for path, image in zip(stock.paths, stock.of_path, strict=True) if image]
    files: dict[str, set[bytes]] = {}
    for path, image in images_of:
        for way in spelt:
            files.setdefault(way(path), set()).add(image)
    folders = {way(root) for root in roots for way in spelt}
    found: dict[int, bytes] = {}
    unclear: list[str] = []
    for row, name in enumerate(table.names):
        if not name:
            continue
        places = (os.path.normpath(os.path.join(folder, name)) for folder in folders)  # noqa: PTH118
        images = set().union(*(files.get(place, set()) for place in places))
        if len(images) == 1:
            found[row] = images.pop()
        elif images:
            unclear.append(name)
    return found, unclear


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
        names = table.column_names
        key, hashed = _key(path, names)
        chosen = next((name for name in names if name in VECTORS), None)
        texts = [_text(value, hashed) for value in table.column(key).to_pylist()]
        if chosen is not None:
            lengths, numbers = _lists(path, table.column(chosen))
        else:
            others = [name for name in names if name not in (*HASHES, *PATHS, SPACE)]
            wrong = [name for name in others if not pa.types.is_floating(table.schema.field(name).type)]
            if wrong or not others:
                raise _unreadable(path, f"columns {', '.join(wrong[:3]) or 'of numbers'} are no floating-point numbers")
            columns = [table.column(name).to_numpy().astype(np.float32) for name in others]
            lengths, numbers = np.full(len(texts), len(others), np.int64), np.stack(columns, axis=1).ravel()
        space = _space(path, table.column(SPACE).unique().to_pylist() if SPACE in names else ())
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise _unreadable(path, _first_line(error)) from None
    return Table(names=tuple(texts), hashed=hashed, lengths=lengths, numbers=numbers, space=space)


def _lists(path: Path, column: Any) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A column of lists of numbers; a missing list has length 0, a missing number is NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = pa.chunked_array(column).combine_chunks()
    kind = whole.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise _unreadable(path, f"its vectors are {kind}, not lists of numbers")
    lengths = pc.fill_null(pc.list_value_length(whole), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, pc.list_flatten(whole).to_numpy(zero_copy_only=False).astype(np.float32)


def _read_npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            key, hashed = _key(path, arrays.files)
            chosen = next((name for name in arrays.files if name in VECTORS), None)
            if chosen is None:
                raise _unreadable(path, "no array vectors")
            texts, vectors = arrays[key], arrays[chosen]
            space = _space(path, np.unique(arrays[SPACE]).tolist() if SPACE in arrays.files else ())
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, AttributeError) as error:
        raise _unreadable(path, _first_line(error)) from None
    if texts.ndim != 1 or vectors.ndim != 2 or len(texts) != len(vectors) or vectors.dtype.kind not in "fiu":
        shape = "×".join(map(str, vectors.shape))
        raise _unreadable(path, f"{texts.size} names and vectors {shape} {vectors.dtype}; wanted are N and N×D numbers")
    return Table(
        names=tuple(_text(value, hashed) for value in texts.tolist()),
        hashed=hashed,
        lengths=np.full(len(vectors), vectors.shape[1], np.int64),
        numbers=_float32(vectors).ravel(),
        space=space,
    )


def _read_npy(path: Path) -> Table:
    """The vectors of a bundle: whose they are, and their space, stands in the .json of the same name."""
    said = path.with_suffix(".json")
    try:
        facts = json.loads(said.read_text("utf-8"))
        hashed = "sha256" in facts
        names = [str(one) for one in facts["sha256" if hashed else "files"]]
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, KeyError, TypeError) as error:
        raise _unreadable(path, f"with {said.name}: {_first_line(error)}") from None
    if vectors.ndim != 2 or len(names) != len(vectors) or vectors.dtype.kind != "f":
        shape = "×".join(map(str, vectors.shape))
        raise _unreadable(path, f"{said.name} lists {len(names)} images for {shape} {vectors.dtype}")
    return Table(
        names=tuple(names),
        hashed=hashed,
        lengths=np.full(len(vectors), vectors.shape[1], np.int64),
        numbers=_float32(vectors).ravel(),
        space=str(facts.get(SPACE, "")),
    )


def _read_csv(path: Path) -> Table:
    before = csv.field_size_limit(FIELD)
    try:
        lines = list(csv.reader(io.StringIO(path.read_text("utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, _first_line(error)) from None
    finally:
        csv.field_size_limit(before)
    lines = [line for line in lines if line]
    if not lines:
        raise _unreadable(path, "it is empty")
    header = [name.strip() for name in lines[0]]
    key, hashed = _key(path, header)
    at, chosen = header.index(key), next((header.index(name) for name in header if name in VECTORS), None)
    skipped = {place for place, name in enumerate(header) if name in (*HASHES, *PATHS, SPACE)}
    rows = []
    for number, line in enumerate(lines[1:], 1):
        try:
            if chosen is not None:
                row = np.array(json.loads(line[chosen]), np.float64)
            else:
                row = np.array([value for place, value in enumerate(line) if place not in skipped], np.float64)
            if row.ndim != 1:
                raise ValueError("no list of numbers")
        except (ValueError, TypeError, IndexError) as error:
            raise _unreadable(path, f"row {number} holds what is no number: {_first_line(error)}") from None
        rows.append(_float32(row))
    return Table(
        names=tuple(line[at].strip() if at < len(line) else "" for line in lines[1:]),
        hashed=hashed,
        lengths=np.array([len(row) for row in rows], np.int64),
        numbers=np.concatenate(rows) if rows else np.zeros(0, np.float32),
        space=_space(path, _cells(lines[1:], header.index(SPACE)) if SPACE in header else ()),
    )


def _cells(lines: Sequence[Sequence[str]], at: int) -> set[str]:
    """What stands in one column, but for lines that end before it."""
    return {line[at].strip() for line in lines if at < len(line)}


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """As float32; what it cannot hold becomes infinity, which `_faults` finds."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _key(path: Path, names: Iterable[str]) -> tuple[str, bool]:
    """The column that says which image a row is about, and whether by its hash, which is believed before a path."""
    for wanted, hashed in ((HASHES, True), (PATHS, False)):
        for name in names:
            if name in wanted:
                return name, hashed
    raise _unreadable(path, "nothing says which images its vectors are of")


def _space(path: Path, found: Iterable[Any]) -> str:
    """The one space that a file says its vectors live in, empty where it says none."""
    said = sorted({str(one) for one in found if one})
    if len(said) > 1:
        raise _unreadable(
            path, f"its rows are of {len(said)} spaces, {said[0]} and {said[1]}; vectors of one belong in it"
        )
    return said[0] if said else ""


def _text(value: Any, hashed: bool) -> str:
    """A name as text; the 32 bytes of a hash become their digits."""
    if isinstance(value, bytes):
        return value.hex() if hashed and len(value) == 32 else value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text[:120]


def _unreadable(path: Path, why: str) -> DistillError:
    return DistillError(f"{path} cannot be read as vectors ({why})", LAYOUT)


READERS = {".parquet": _read_parquet, ".npz": _read_npz, ".csv": _read_csv, ".npy": _read_npy}
