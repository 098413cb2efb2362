"""The teacher's own network, or an early part of it, as the student."""

from distilltool import sources
from distilltool.students import Backbone, Start, grown


def teacher(name: str, start: Start) -> Backbone:
    """The teacher's graph with its weights: `teacher`, `teacher:cut=0.6`, `teacher:cut=TENSOR`."""
    return grown(sources.settings(name), start)
