"""Extension folders: a file is found by being there, its name is what users type, one function inside it."""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any

from distilltool.errors import DistillError


def names(package: str) -> list[str]:
    """What an extension folder offers, in order."""
    return sorted(module.name for module in pkgutil.iter_modules(import_module(package).__path__))


def find(package: str, kind: str, name: str) -> Callable[..., Any]:
    """The function `name` of the file `name`; an unknown name is an error that lists the known ones."""
    known = names(package)
    if name not in known:
        raise DistillError(f"there is no {kind} {name!r}", f"use one of {', '.join(known)}")
    function: Callable[..., Any] = getattr(import_module(f"{package}.{name}"), name)
    return function
