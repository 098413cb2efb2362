"""fusion"""

from distilltool.trainable.builder import Builder


def fuse(b: Builder) -> None:
    """x"""
