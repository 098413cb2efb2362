"""Which function rebuilds which operator."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distilltool.trainable.values import Value

if TYPE_CHECKING:
    from distilltool.trainable.builder import Builder, Op

Made = Value | Sequence[Value | None]  # what a function returns: one output, or several in order
Function = Callable[["Builder", "Op"], Made]
OPERATORS: dict[str, Function] = {}


def operator(*names: str) -> Callable[[Function], Function]:
    """Register a function for operators by type; those of com.microsoft carry their domain, as `com.microsoft.Gelu`."""

    def register(function: Function) -> Function:
        for name in names:
            assert name not in OPERATORS, f"{name} is registered twice"
            OPERATORS[name] = function
        return function

    return register
