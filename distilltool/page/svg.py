"""A matplotlib figure as SVG that stands within a page: its text is text, its colours are the page's."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

SVG, LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
# what charts are drawn in → the variable of report.css that the page shows instead, in light and in dark
COLOURS = {
    "#1b1f24": "--ink",
    "#5b6470": "--muted",
    "#d4d9e0": "--line",
    "#3d4550": "--m0",
    "#0060a8": "--m1",
    "#b34a00": "--m2",
    "#00734f": "--m3",
    "#8f2f7d": "--m4",
    "#7a5c00": "--m5",
    "#00735e": "--hit",
    "#b3261e": "--miss",
    "#fefefe": "--paper",
}
INK, MUTED, LINE, *_ = COLOURS
HIT, MISS, PAPER = (colour for colour, name in COLOURS.items() if name in ("--hit", "--miss", "--paper"))
SCALE = 2  # pixels of a file of its own for a point of a chart
SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and scaled
    "svg.hashsalt": "distilltool",
    "text.parse_math": False,  # a class may be named $x$
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Settings of the page's charts; glyphs that matplotlib's font lacks are the browser's business."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():  # type: ignore[arg-type, unused-ignore]
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def inline(figure: Figure, name: str, label: str, titles: Mapping[str, Sequence[Mapping[str, str]]]) -> Markup:
    """The figure as an SVG element.

    name: unique in the page, before every id. label: what it shows, for those who do not see it. titles: for a group of
    marks drawn with a gid, what to say of each mark in its order: `title`, and further attributes.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)  # a style would hold for the whole page
    for gid, said in titles.items():
        _say(root, gid, said)
    _tidy(root, name)
    for side in ("width", "height"):
        root.attrib.pop(side, None)
    root.attrib.update({"role": "img", "aria-label": label, "class": "chart"})
    ElementTree.register_namespace("", SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def alone(chart: str, css: str) -> str:
    """A chart of `inline` as a file of its own, on the page's paper, in light and in dark as its reader has it.

    css: the page's, whose first rules are its colours. Every colour is written out before its variable, for readers of
    SVG that know no variables.
    """
    plain = {name: colour for colour, name in COLOURS.items()}
    chart = re.sub(
        r"(fill|stroke): var\((--\w+)\)",
        lambda found: f"{found[1]}: {plain[found[2]]}; {found[0]}" if found[2] in plain else found[0],
        chart,
    )
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart)
    assert found is not None
    colours = css[: css.index("* {")].replace("screen and ", "")
    fonts = "svg { font-family: system-ui, sans-serif; }\ntext { font-family: inherit !important; }"
    style = f"<style>\n{colours}{fonts}</style>"
    paper = f'<rect width="100%" height="100%" style="fill: {PAPER}; fill: var(--paper)"/>'
    head, rest = chart.split(">", 1)
    size = f' width="{float(found[1]) * SCALE:.0f}" height="{float(found[2]) * SCALE:.0f}"'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{size}>{style}{paper}{rest}\n'


def _say(root: ElementTree.Element, gid: str, said: Sequence[Mapping[str, str]]) -> None:
    [group] = [one for one in root.iter() if one.get("id") == gid]
    marks = list(group.iter(f"{{{SVG}}}use"))
    if len(marks) != len(said):
        raise ValueError(f"{gid} has {len(marks)} marks for {len(said)} titles")
    for mark, one in zip(marks, said, strict=True):
        ElementTree.SubElement(mark, f"{{{SVG}}}title").text = one["title"]
        mark.attrib.update({key: value for key, value in one.items() if key != "title"})


def _tidy(root: ElementTree.Element, name: str) -> None:
    """Ids that something points to, made unique; no others; links without a namespace; colours of the page."""
    text = ElementTree.tostring(root, encoding="unicode")
    wanted = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    kept = {one for pair in wanted for one in pair if one}
    for element in root.iter():
        attributes: dict[str, Any] = {}
        for key, value in element.attrib.items():
            if key == "id":
                if value in kept:
                    attributes["id"] = f"{name}-{value}"
            elif key == LINK:
                attributes["href"] = f"#{name}-{value[1:]}"
            elif key in ("style", "clip-path", "fill", "stroke"):
                attributes[key] = _recoloured(value.replace("url(#", f"url(#{name}-"))
            else:
                attributes[key] = value
        element.attrib.clear()
        element.attrib.update(attributes)


def _recoloured(style: str) -> str:
    return re.sub(
        r"#[0-9a-f]{6}\b", lambda found: f"var({COLOURS[found[0]]})" if found[0] in COLOURS else found[0], style
    )
