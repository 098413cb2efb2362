"""The teacher's own network, an early part of it or a narrower one, as the student."""

from distilltool import sources
from distilltool.students import Backbone, Start, grown


def teacher(name: str, start: Start) -> Backbone:
    """The teacher's graph with its weights: `teacher`, `teacher:cut=0.6`, `teacher:cut=TENSOR`, `teacher:width=0.5`."""
    return grown(sources.settings(name), start)
