"""What only passes on, and branches that are decided already."""

from typing import Any

from distilltool.graph import held
from distilltool.trainable.builder import Builder, Op
from distilltool.trainable.numbers import read
from distilltool.trainable.registry import operator
from distilltool.trainable.values import Unsupported, Value


@operator("Identity")
def identity(b: Builder, op: Op) -> Value:
    """Nothing."""
    return op.value(0)


@operator("Dropout")
def dropout(b: Builder, op: Op) -> list[Value | None]:
    """Nothing: what is regularised while training is for the recipe to say."""
    op.first_output_only()
    return [op.value(0), None]


@operator("If")
def branch(b: Builder, op: Op) -> list[Value | None]:
    """The branch that a condition known now takes."""
    condition = op.constant(0, "condition")
    taken: Any = op.attribute("then_branch" if bool(condition) else "else_branch")
    b.constants(b.weights(taken.initializer))
    b.walk(taken.node)
    return [b.env[one.name] for one in taken.output]


@operator("Constant")
def constant(b: Builder, op: Op) -> Value:
    """A tensor the node holds."""
    found = held(op.node)
    if found is None:
        raise Unsupported("what it holds")
    return read(found)
