"""The teacher's own network, or an early part of it, as the student."""

from distilltool import sources
from distilltool.students import Backbone, Start, grown


def teacher(name: str, start: Start) -> Backbone:
    """The teacher's graph with its weights: `teacher`, `teacher:cut=0.6`, `teacher:cut=TENSOR`."""
    settings = sources.settings(name)
    return grown(settings, start, whole_teacher="cut" not in settings)
