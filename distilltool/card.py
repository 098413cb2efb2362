"""The model card of a bundle."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilltool.names import headline, manner, printable
from distilltool.precisions import FP32
from distilltool.provenance import OVER
from distilltool.report import ExportReport, LatencyReport, VariantReport, to_json
from distilltool.runtime import DEVICES
from distilltool.student import StudentCard

BLANK = "_fill in_"
LICENCE = "## Licence"  # the last section, which is filled in by hand


def render_card(report: ExportReport, manifest: dict[str, Any], card: StudentCard) -> str:
    """Markdown that tells whoever finds the file what it is, what it keeps, and how to use and verify it."""
    made, teacher, variant = manifest["report"], manifest["teacher"], report.variants[0]
    fidelity = made["fidelity"]
    height, width = card.input
    name = _quiet(report.teacher["name"])
    lines = [
        f"# {name} → {card.spec}",
        "",
        f"A compact image-embedding model distilled with distilltool's recipe `{made['recipe']}` from "
        f"`{name}`. {made['verdict'][:1].upper()}{made['verdict'][1:]}.",
        "",
        "| | |",
        "|---|---|",
        f"| input | `images`: (N, {height}, {width}, 3) uint8, RGB as decoded; {card.preprocess.describe()} |",
        f"| output | `embedding`: (N, {card.dim}) float32 of length 1 |",
        *([f"| nested | {_nested(card, made)} |"] if card.dims else []),
        f"| space | `{card.space_id}` ({_space(card)}) |",
        f"| parameters | {card.params:,} |",
        f"| started from | {card.start} |",
        f"| queries to the teacher | {made['queries']['spent']:,} |",
        f"| images | {made['images']['train']:,} to train on, {made['images']['validation']:,} held out, unlabelled |",
        f"| seed | {made['seed']} |",
        f"| held-out top-{made['k']} overlap | {_interval(fidelity['overlap@10'])} |",
        f"| held-out Spearman | {_interval(fidelity['spearman'])} |",
        "",
        "## Quality on labelled or unseen images",
        "",
        *(_evaluated(one) for one in report.evaluations),
        *([] if report.evaluations else ["Not evaluated yet: run `distilltool eval` on the run, then export again."]),
        "",
        "## Latency",
        "",
        f"On {report.machine['cpu']}, onnxruntime {report.machine['onnxruntime']}, {_ran(variant.latency[0])}:",
        "",
        *_latency(report),
        "",
        "## Files and hashes",
        "",
        *(_file(one) for one in report.variants if one.status == "accepted"),
        "- `deploy.py`: needs onnxruntime, numpy and Pillow: `python deploy.py student.onnx photo.jpg ...`",
        "- `report.json`: every figure of this page",
        "",
        "Verify with `distilltool verify .`, which embeds the pictures in `golden/` too, or `sha256sum -c SHA256SUMS`.",
        "",
        "## Made from",
        "",
        f"- teacher `{name}`: sha256 `{teacher['sha256']}`, over the file and what it keeps beside it",
        *_sources(report.sources),
        "",
        LICENCE,
        *_licences(name),
    ]
    return "\n".join(lines)


def _licences(teacher: str) -> list[str]:
    """The section on licences, to be filled in."""
    return [
        "",
        "The student learned from the teacher's answers and the images: check what their licences ask, and fill in "
        "what holds. This page is not among the hashes, so that it can be.",
        "",
        "| | licence | from where, by whom |",
        "|---|---|---|",
        *(f"| {what} | {BLANK} | {BLANK} |" for what in (f"teacher `{teacher}`", "images", "this student")),
        "",
    ]


def filled_in(card: str) -> str:
    """What somebody wrote of licences, the whole section; "" where nobody has."""
    _, _, section = card.partition(f"\n{LICENCE}\n")
    teacher = re.search(r"^\| teacher `(.*?)`", section, re.MULTILINE)
    return "" if teacher and section == "\n".join(_licences(teacher[1])) else section


def with_licences(card: str, section: str, *, hold: bool) -> str:
    """A card with another's section on licences, which is a comment, to be looked at, where it may not hold."""
    before, heading, blank = card.partition(f"\n{LICENCE}\n")
    if hold:
        return before + heading + section
    quoted = section.strip().replace("-->", "-- >")
    return f"{before}{heading}{blank}\n<!-- of an earlier card, for another teacher or other images:\n\n{quoted}\n-->\n"


def _ran(one: LatencyReport) -> str:
    """Where a file was timed, and what its time takes in."""
    copies = "nothing to copy"
    if one.provider != DEVICES["cpu"]:
        copies = "from and to arrays in main memory, so that copies to and from the device are included"
    return f"{one.provider} (`--device {_quiet(one.device)}`), batch {one.batch}, {copies}"


def _sources(found: Mapping[str, str]) -> list[str]:
    """What the images, the answers and the recipe hash to, and how that is computed."""
    if not found:
        return ["- images, answers and recipe: distilled by a version that kept no hashes of them"]
    return [f"- {what}: sha256 `{found[what]}`, over {over}" for what, over in OVER.items() if what in found]


def _quiet(name: str) -> str:
    """A file's name as it may stand in Markdown, also between backticks."""
    return "".join("_" if char in "`|<>[]#*" else char for char in printable(name))


def _space(card: StudentCard) -> str:
    if card.space == "teacher":
        return "the teacher's: its vectors may be compared with vectors the teacher made"
    return "its own: never compare its vectors with the teacher's; embed the gallery with it"


def _nested(card: StudentCard, made: dict[str, Any]) -> str:
    """The lengths that vectors may be cut to, and what each keeps."""
    kept = [f"{dim}: {made['nested'][str(dim)]['overlap@10']['value']:.3f}" for dim in card.dims]
    return f"cut to the first numbers and brought to length 1, held-out top-{made['k']} overlap at {', '.join(kept)}"


def _interval(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "–"
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _evaluated(evaluation: dict[str, Any]) -> str:
    teacher, *students = evaluation["models"]
    student = students[0]
    how = _quiet(manner(evaluation.get("views"), evaluation.get("whitening")))
    found = [
        f"{name} {_interval(student['metrics'][name])}, teacher {_interval(teacher['metrics'][name])}, "
        f"kept {_interval(student['retention'][name])}"
        for name in headline(student["metrics"])
    ]
    found.append(f"overlap@10 {_interval(student['fidelity']['overlap@10'])}")
    return (
        f"- `{_quiet(Path(evaluation['data']).name)}` ({evaluation['protocol']}, {evaluation['queries']:,} queries, "
        f"{evaluation['gallery']:,} gallery images{', ' + how if how else ''}): " + "; ".join(found)
    )


def _file(variant: VariantReport) -> str:
    """A file's size, hash, and how near it is to the trained student."""
    overlap = f"top-10 overlap with `{FP32}` {_interval(to_json(variant.overlap_at_10))}"
    if variant.image == "any":
        near = f"takes decoded images of any size; {overlap}"
    elif variant.faster_than_fp32 is None:
        near = f"smallest cosine to the trained student on image files {variant.parity['cosine_min']:.6f}"
    else:
        near = f"{overlap}, {variant.faster_than_fp32.value:.2f} times as fast"
    return f"- `{variant.file}`: {variant.bytes:,} bytes, sha256 `{variant.sha256}`, opset {variant.opset}; {near}"


def _timed(one: VariantReport) -> str:
    """A file in the table of times."""
    return f"student {one.precision}" + (", one photograph, resized inside" if one.image == "any" else "")


def _latency(report: ExportReport) -> list[str]:
    rows = ["| model | threads | p50 ms | p90 ms | p99 ms | images/s | times faster |", "|---|---|---|---|---|---|---|"]
    shipped = [one for one in report.variants if one.status == "accepted"]
    named = [(_timed(one), times) for one in shipped for times in to_json(one.latency)]
    named += [("teacher", one) for one in report.teacher["latency"]]
    for name, one in named:
        faster = f"{one['speedup']['value']:.2f}" if one.get("speedup") else ""
        cells = [f"{one[key]:.2f}" if one[key] is not None else "–" for key in ("p50_ms", "p90_ms", "p99_ms")]
        rows.append(f"| {name} | {one['threads']} | {' | '.join(cells)} | {one['throughput']:.1f} | {faster} |")
    return rows
