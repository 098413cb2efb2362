"""What the inputs and tensors of a graph are for: which one is the image, which one the embedding, and why."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distilltool.errors import DistillError
from distilltool.graph import CHAIN, MOVES, WEIGHT_AT, Graph, Shape, Value, sides
from distilltool.preprocess import NORMALISATIONS

InputRole = Literal["image", "text", "setting", "other"]
OutputRole = Literal["embedding", "logits", "probabilities", "token map", "feature map", "detections", "other"]

EMBEDDING_NAMES = (
    "image_embeds",
    "image_embedding",
    "image_features",
    "embeddings",
    "embedding",
    "sentence_embedding",
    "pooler_output",
    "features",
    "feature",
)
SCORE_NAMES = ("prob", "softmax", "logit", "score", "class")
VECTOR_WORDS = ("embed", "feat", "token")
BOX_NAMES = ("box", "detection", "num_det", "anchor")
FEW = 8  # numbers below which a vector ranks nothing: a score, a box, a pose
COUNTS = {10, 100, 365, 1000, 1001, 11221, 21841, 21843}  # classes of CIFAR, Places, ImageNet-1k and -21k
STEP = 32  # widths of embeddings are multiples of it; numbers of classes (1000, 1001, 21841, 365, 101) are not
POOLING = {"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "ReduceMean", "ReduceMax", "GlobalLpPool"}
SOFTMAX = {"Softmax", "LogSoftmax", "Hardmax", "QLinearSoftmax"}
SQUASH = SOFTMAX | {"Sigmoid", "QLinearSigmoid"}
INTEGER = {"MatMulInteger", "ConvInteger"}  # products of dynamically quantised numbers, scaled after
LINEAR = {
    "Gemm",
    "MatMul",
    "Conv",
    "QLinearMatMul",
    "QLinearConv",
    "QGemm",
    "FusedMatMul",
    "FusedGemm",
    "FusedConv",
} | INTEGER
CHANNELS_FIRST = {"Conv", "ConvTranspose", "QLinearConv", "BatchNormalization", "InstanceNormalization"} | POOLING
REACH = 64  # nodes walked back from an output before giving up on what it is
IMAGE_AXES = 4  # of a batch of images


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The tensor taken as the embedding. pool: "none" or how a map or tokens become a vector. why: for people.

    channels_last: how a map is laid out, None where the graph does not say. role: what the tensor is.
    """

    tensor: str
    role: OutputRole
    why: str
    pool: str
    channels_last: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """The end of a classifier. linear: its last layer's output; features: what that layer reads; classes: how many.

    squashed: a softmax or sigmoid follows; bias: the layer adds one; pooled: places are averaged after it;
    channels_last: where the layer finds the channels of a map. heads: 2 where two such layers are added up.
    """

    linear: str
    features: str
    classes: int
    squashed: bool
    bias: bool
    pooled: bool
    channels_last: bool
    heads: int = 1

    @property
    def is_classifier(self) -> bool:
        """Whether its width is a number of classes rather than one of an embedding."""
        return self.classes in COUNTS or (self.classes < FEW and self.bias) or (self.bias and self.classes % STEP != 0)


def input_role(value: Value) -> InputRole:
    """What an input is for, by its type and shape."""
    shape = value.shape
    if shape is not None and len(shape) == 4 and value.dtype in ("float32", "float16", "uint8"):
        return "image" if 3 in (shape[1], shape[3]) or not any(isinstance(one, int) for one in shape[1:]) else "other"
    if value.dtype in ("int64", "int32") and shape is not None and len(shape) == 2:
        return "text"
    if shape is not None and len([one for one in shape if one != 1]) <= 1 and not value.dtype.startswith("object"):
        return "setting"
    return "other"


def image_inputs(graph: Graph) -> list[Value]:
    """The inputs that take images."""
    return [one for one in graph.inputs if input_role(one) == "image"]


def is_pair_scorer(graph: Graph) -> bool:
    """Whether the model wants two images at once: two inputs, six channels, or an axis of two."""
    if len(image_inputs(graph)) > 1:
        return True
    for one in graph.inputs:
        shape = one.shape or ()
        if len(shape) == 4 and 6 in (shape[1], shape[3]) and one.dtype in ("float32", "float16", "uint8"):
            return True
        if len(shape) == 5 and shape[1] == 2 and 3 in (shape[2], shape[4]):
            return True
    return False


def role_of(graph: Graph, name: str, shapes: Mapping[str, Value]) -> tuple[OutputRole, str]:
    """What a tensor holds, and the reason in a few words."""
    shape = shapes[name].shape if name in shapes else None
    low = name.lower()
    if any(word in low for word in BOX_NAMES):
        return "detections", "its name"
    if shape is not None and len(sides(shape)) > 1:
        match next((one.shape for one in graph.outputs if one.name == name), None):
            case (_, int(numbers), str()):  # tokens vary in number, not in length
                return "detections", f"{numbers} numbers for each of as many places as an image has"
        return _role_of_many(shape)
    found = tail(graph, name, shapes)
    if found is not None and found.squashed:
        return "probabilities", f"a softmax or sigmoid over {found.classes} classes"
    if found is None and _is_softmax(graph, name):
        return "probabilities", "a softmax"
    if low in EMBEDDING_NAMES:
        return "embedding", "its name"
    if any(word in low for word in SCORE_NAMES) and not any(word in low for word in VECTOR_WORDS):
        return "logits", "its name"
    if found is not None and found.is_classifier:
        return "logits", f"{found.classes} numbers straight from a last linear layer"
    if shape is None:
        return "other", "its shape is not known"
    wide = next(iter(sides(shape)), 1)
    if isinstance(wide, int) and wide < FEW:
        return "other", f"{wide} numbers are too few to rank by"
    return "embedding", "one vector per image"


def _role_of_many(shape: Shape) -> tuple[OutputRole, str]:
    """What a tensor of more than one axis for each image holds."""
    if len(shape) == 3:
        if isinstance(shape[2], int) and shape[2] < FEW:
            return "detections", f"{shape[2]} numbers for each of many places"
        return "token map", "its shape (N, T, D)"
    return ("feature map", "its shape (N, D, H, W)") if len(shape) == 4 else ("other", f"its shape {shape}")


def tail(graph: Graph, name: str, shapes: Mapping[str, Value]) -> Tail | None:
    """The classifying end that leads to a tensor: a linear layer, or the sum of two, then at most pooling, a bias and
    a softmax."""
    squashed = bias = pooled = False
    for _ in range(REACH):
        node = graph.maker.get(name)
        if node is None or not node.input:
            return None
        kind = node.op_type
        if kind in LINEAR:
            found = _layer(graph, node, shapes)
            if found is None:
                return None
            return replace(found, linear=name, squashed=squashed, bias=bias or found.bias, pooled=pooled)
        follow = _onward(graph, node, pooled)
        if follow is None and not pooled:
            both = _two_heads(graph, node, shapes)
            return replace(both, linear=name, squashed=squashed) if both is not None else None
        if follow is None or (kind in SQUASH and squashed):
            return None
        squashed |= kind in SQUASH
        pooled |= kind in POOLING
        bias |= kind == "Add"
        name = follow
    return None


def _is_softmax(graph: Graph, name: str) -> bool:
    """Whether a tensor is a softmax's, converted or reshaped at most."""
    for _ in range(CHAIN):
        node = graph.maker.get(name)
        if node is None or not node.input or node.op_type in SOFTMAX:
            return node is not None and node.op_type in SOFTMAX
        if node.op_type not in MOVES:
            return False
        name = str(node.input[0])
    return False


def _onward(graph: Graph, node: Any, pooled: bool) -> str | None:
    """The tensor to go on with when walking back through what may follow a classifying layer."""
    kind = node.op_type
    if kind in MOVES or kind in SQUASH or kind in POOLING or (kind == "Relu" and pooled):
        return str(node.input[0])
    if kind in ("Add", "Mul", "Div", "Sub"):  # of a constant: a bias, a temperature
        free = [name for name in node.input if graph.constant(name) is None and graph.weight_dims(name) is None]
        if kind == "Mul" and len(free) == 2:
            free = [name for name in free if _is_integer_product(graph, name)]
        return free[0] if len(free) == 1 else None
    return None


def _is_integer_product(graph: Graph, name: str) -> bool:
    node = graph.maker.get(name)
    if node is not None and node.op_type == "Cast" and node.input:
        node = graph.maker.get(str(node.input[0]))
    return node is not None and node.op_type in INTEGER


def _two_heads(graph: Graph, node: Any, shapes: Mapping[str, Value]) -> Tail | None:
    """The end of a network trained with a distillation token (Touvron et al. 2021): two classifiers, averaged."""
    if node.op_type not in ("Add", "Sum") or len(node.input) != 2:
        return None
    ends = [_single(graph, str(name), shapes) for name in node.input]
    first, second = ends
    if first is None or second is None or first.classes != second.classes or not first.is_classifier:
        return None
    return replace(first, heads=1 if first.features == second.features else 2)


def _single(graph: Graph, name: str, shapes: Mapping[str, Value]) -> Tail | None:
    """The linear layer that makes a tensor, a bias added at most."""
    bias = False
    for _ in range(CHAIN):
        node = graph.maker.get(name)
        if node is None or not node.input:
            return None
        if node.op_type in LINEAR:
            found = _layer(graph, node, shapes)
            return replace(found, linear=name, bias=bias or found.bias) if found is not None else None
        follow = _onward(graph, node, False) if node.op_type in MOVES or node.op_type == "Add" else None
        if follow is None:
            return None
        bias |= node.op_type == "Add"
        name = follow
    return None


def _layer(graph: Graph, node: Any, shapes: Mapping[str, Value]) -> Tail | None:
    """A linear layer as a tail of its own; None where both sides are computed, as in attention, or where a convolution
    looks at more than one place, as no classifier's does."""
    at = WEIGHT_AT.get(node.op_type, 1)
    dims = _weight(graph, str(node.input[at]), shapes) if len(node.input) > at else None
    if dims is None or len(dims) < 2:
        return None
    conv = "Conv" in node.op_type
    if conv:
        made = shapes.get(node.output[0])
        whole = made is not None and made.shape is not None and len(sides(made.shape)) <= 1
        if graph.attribute(node, "group", 1) != 1 or (max(dims[2:], default=1) > 1 and not whole):
            return None
    turned = node.op_type == "Gemm" and graph.attribute(node, "transB", 0)
    return Tail(
        linear=str(node.output[0]),
        features=str(node.input[0]),
        classes=dims[0] if conv or turned else dims[-1],
        squashed=False,
        bias=node.op_type not in INTEGER and len([one for one in node.input if one]) > (8 if at > 1 else 2),
        pooled=False,
        channels_last=not conv,
    )


def _weight(graph: Graph, name: str, shapes: Mapping[str, Value]) -> tuple[int, ...] | None:
    """Dimensions of a weight; one that the graph makes from constants alone counts as one."""
    if (dims := graph.weight_dims(name)) is not None:
        return dims
    shape = shapes[name].shape if name in shapes else None
    if shape is None or graph.needed_inputs(name) or not all(isinstance(side, int) for side in shape):
        return None
    return tuple(side for side in shape if isinstance(side, int))


def penultimate(graph: Graph, output: str, shapes: Mapping[str, Value], pool: str | None) -> Choice | None:
    """What the classifying layer in front of an output reads; a map is averaged over its places, as the graph does.

    pool: how else a map becomes a vector, None where nothing was asked for.
    """
    found = tail(graph, output, shapes)
    name = _settle(graph, found.features, shapes) if found is not None else None
    if found is None or name is None:
        return None
    known = shapes.get(name)
    several = known is not None and known.shape is not None and len(sides(known.shape)) > 1
    if several and not found.pooled and (known is None or len(known.shape or ()) != 4):
        return None  # tokens without an average behind them: no one of them is the vector
    pooled = "averaged over its places" if pool is None else f"its places pooled by {pool}, as asked for"
    classes = f"{found.classes} classes" + (f"; {pooled}" if several else "")
    layer = "last layer" if found.heads == 1 else "first of two last layers"
    return Choice(
        tensor=name,
        role="feature map" if several else "embedding",
        why=f"what the {layer} reads, as {output} holds scores of {classes}",
        pool=(pool or "avg") if several else "none",
        channels_last=_channels_last(graph, name, shapes) if several else None,
    )


def _settle(graph: Graph, name: str, shapes: Mapping[str, Value]) -> str | None:
    """Step back over what changes no number, so that a tensor has the name its maker gave it; over a rounding to
    bytes too, as bytes are no vector. None where only bytes are there."""
    while (node := graph.maker.get(name)) is not None and node.input:
        if node.op_type not in ("Dropout", "Identity", "QuantizeLinear", "DynamicQuantizeLinear"):
            break
        name = str(node.input[0])
    return None if _is_rounded(graph, name, shapes) else name


def _is_rounded(graph: Graph, name: str, shapes: Mapping[str, Value]) -> bool:
    """Whether a tensor holds the integers of a quantised operator; of many of them no type is inferred."""
    for _ in range(CHAIN):
        if name in shapes:
            return "int" in shapes[name].dtype
        node = graph.maker.get(name)
        if node is None or not node.input or node.op_type in ("DequantizeLinear", "Cast"):
            return False
        if node.op_type.startswith(("QLinear", "QGemm", "QuantizeLinear")):
            return True
        if node.op_type not in MOVES:
            return False
        name = str(node.input[0])
    return False


def choose(graph: Graph, image: str, shapes: Mapping[str, Value], wanted: str | None, pool: str | None) -> Choice:
    """Take a tensor as the embedding: the one asked for, else an output that is one, else what is before scores."""
    if wanted is not None:
        return _asked_for(graph, image, shapes, wanted, pool)
    outputs = [one.name for one in graph.outputs if image in graph.ancestry(one.name)]
    outputs = [name for name in outputs if all(_fillable(one, image) for one in graph.needed_inputs(name))]
    roles = {name: role_of(graph, name, shapes) for name in outputs}
    listed = ", ".join(f"{name} ({role})" for name, (role, _) in roles.items())
    named = sorted(
        (name for name in outputs if name.lower() in EMBEDDING_NAMES and roles[name][0] != "probabilities"),
        key=lambda name: (roles[name][0] != "embedding", EMBEDDING_NAMES.index(name.lower())),
    )
    vectors = [name for name in outputs if roles[name][0] == "embedding"]
    named = named if not vectors or (named and roles[named[0]][0] == "embedding") else []  # a map only for want of one
    maps = [name for name in outputs if roles[name][0] in ("token map", "feature map")]
    for group, reason in ((named, "its name"), (vectors, "one vector per image")):
        if group:
            why = "the only output" if len(graph.outputs) == 1 else f"{reason}, out of {listed}"
            return _as_choice(graph, group[0], roles[group[0]][0], why, shapes, pool)
    scores = [name for name in outputs if roles[name][0] in ("logits", "probabilities")]
    for name in scores:
        if (before := penultimate(graph, name, shapes, pool)) is not None:
            return before
    unknown = [name for name in outputs if name not in shapes or shapes[name].shape is None]
    if unknown and len(outputs) == 1:
        return _as_choice(graph, unknown[0], "other", "the only output", shapes, pool)
    if maps and not any(role == "detections" for role, _ in roles.values()):
        return _as_choice(
            graph, maps[0], roles[maps[0]][0], f"the only {roles[maps[0]][0]}, out of {listed}", shapes, pool
        )
    if not outputs and (side := _image_side(graph, image, shapes)) is not None:
        return side
    raise DistillError(
        f"no output is an embedding: {listed or 'none depends on the image alone'}",
        "see distilltool inspect MODEL --tensors, and name a tensor with --output",
    )


def choose_declared(outputs: Sequence[Value], wanted: str | None, pool: str | None) -> Choice:
    """Choose among outputs of which only name and shape are known, as a server declares them."""
    names = [one.name for one in outputs]
    low = [name.lower() for name in names]
    known = [names[low.index(name)] for name in EMBEDDING_NAMES if name in low]
    vectors = [
        one.name
        for one in outputs
        if len(sides(one.shape)) <= 1 and not any(s in one.name.lower() for s in SCORE_NAMES)
    ]
    if wanted is not None and wanted not in names:
        raise DistillError(f"the model has no output {wanted!r}", f"its outputs are {', '.join(names)}")
    name, why = next(
        (group[0], why)
        for group, why in (
            ([wanted] if wanted is not None else [], "asked for"),
            (names if len(names) == 1 else [], "the only output"),
            (known, f"its name, out of {', '.join(names)}"),
            (vectors or names, f"the first that looks like a vector, out of {', '.join(names)}"),
        )
        if group
    )
    shape = next(one.shape for one in outputs if one.name == name)
    several = len(sides(shape)) > 1
    if several and pool is None:
        raise _no_vector(name, shape or (), "output")
    return Choice(
        tensor=name,
        role="feature map" if several else "embedding",
        why=why,
        pool=pool if pool is not None and several else "none",
        channels_last=None,
    )


def _no_vector(name: str, shape: Shape, role: str) -> DistillError:
    sides_said = "×".join("?" if one is None else str(one) for one in shape)
    return DistillError(
        f"the output {name} is {sides_said}, a {role}, not one vector per image",
        "choose a pooling with --pool avg|max|gem|cls, or another --output",
    )


def _image_side(graph: Graph, image: str, shapes: Mapping[str, Value]) -> Choice | None:
    """The last vector computed from the image alone, where a text branch meets it: what the model compares texts to."""
    reach = reached(graph, {image})
    foreign = reached(graph, {one.name for one in graph.inputs if not _fillable(one, image)})
    for node in reversed(graph.nodes):
        if not any(name in foreign for name in node.output):
            continue
        for met in (str(one) for one in node.input if one in reach and one not in foreign):
            name = _before_turning(graph, met)
            shape = shapes[name].shape if name in shapes else None
            wide = sides(shape)[0] if shape is not None and len(sides(shape)) == 1 else 0
            if isinstance(wide, int) and wide >= FEW and role_of(graph, name, shapes)[0] == "embedding":
                return Choice(
                    tensor=name,
                    role="embedding",
                    why="the last vector of the image alone, which the rest compares with the other inputs",
                    pool="none",
                    channels_last=None,
                )
    return None


def _before_turning(graph: Graph, name: str) -> str:
    """A vector as it was before it was turned to be multiplied from the other side."""
    for _ in range(CHAIN):
        node = graph.maker.get(name)
        if node is None or node.op_type not in ("Transpose", "Identity") or not node.input:
            return name
        name = str(node.input[0])
    return name


def _fillable(value: Value, image: str) -> bool:
    return value.name == image or input_role(value) == "setting"


def _asked_for(graph: Graph, image: str, shapes: Mapping[str, Value], wanted: str, pool: str | None) -> Choice:
    if wanted not in graph.maker:
        near = difflib.get_close_matches(wanted, [*graph.maker], n=3, cutoff=0.4)
        outputs = ", ".join(one.name for one in graph.outputs)
        raise DistillError(
            f"the model has no tensor {wanted!r}" + (f"; near it are {', '.join(near)}" if near else ""),
            f"its outputs are {outputs}; inspect --tensors lists what else can serve",
        )
    if image not in graph.ancestry(wanted):
        raise DistillError(f"{wanted} does not depend on the image", "name another tensor with --output")
    return _as_choice(graph, wanted, role_of(graph, wanted, shapes)[0], "asked for", shapes, pool)


def _as_choice(
    graph: Graph, name: str, role: OutputRole, why: str, shapes: Mapping[str, Value], pool: str | None
) -> Choice:
    shape = shapes[name].shape if name in shapes else None
    several = shape is None or len(sides(shape)) > 1
    if several and pool is None and shape is not None:
        raise _no_vector(name, shape, role)
    return Choice(
        tensor=name,
        role=role,
        why=why,
        pool=pool if pool is not None and several else "none",
        channels_last=_channels_last(graph, name, shapes) if several else None,
    )


def _channels_last(graph: Graph, name: str, shapes: Mapping[str, Value]) -> bool | None:
    """How a map is laid out, None where the graph does not say: by the last layer that reads it, else by what made it.

    The one judge of it, however the map was chosen: what is recorded of a choice is its name and pooling alone.
    """
    for output in graph.outputs:
        end = tail(graph, output.name, shapes)
        if end is not None and name in (end.features, _settle(graph, end.features, shapes)):
            return end.channels_last
    return made_channels_last(graph, name)


def made_channels_last(graph: Graph, name: str) -> bool | None:
    """How a map is laid out by what made it: convolutions put channels first, a transposition may turn that."""
    for _ in range(REACH):
        node = graph.maker.get(name)
        if node is None or not node.input:
            return None
        if node.op_type in CHANNELS_FIRST:
            return False
        if node.op_type == "Transpose":
            perm = list(graph.attribute(node, "perm", []))
            before = made_channels_last(graph, str(node.input[0])) if perm in ([0, 2, 3, 1], [0, 3, 1, 2]) else None
            if before is None:
                return None
            return perm == [0, 2, 3, 1] if not before else perm != [0, 3, 1, 2]
        free = [one for one in node.input if one and one not in graph.weights]
        if not free:
            return None
        name = str(free[0])
    return None


def candidates(
    graph: Graph, image: str, shapes: Mapping[str, Value], chosen: str | None
) -> list[tuple[Value, OutputRole, str]]:
    """Tensors that can serve as the embedding, from the first to the last: maps and tokens that all later work goes
    through, the vectors after them (the last of several of one shape), and the one chosen."""
    found: list[tuple[Value, OutputRole, str]] = []
    reach = {name for name in reached(graph, {image}) if name not in shapes or shapes[name].dtype.startswith("float")}
    narrow = waists(graph, reach)
    for node in graph.nodes:
        for name in node.output:
            value = shapes.get(name)
            if name not in reach or value is None or value.shape is None:
                continue
            several = sides(value.shape)
            if len(several) == 1 and isinstance(several[0], int) and several[0] >= FEW:
                found.append((value, *role_of(graph, name, shapes)))
            elif name in narrow and len(several) > 1 and len(value.shape) in (3, 4):
                found = [
                    one for one in found if len(sides(one[0].shape)) > 1 or one[0].name in narrow
                ]  # gates, no more
                found.append((value, *role_of(graph, name, shapes)))
    found = [one for one in found if one[1] not in ("logits", "probabilities", "detections")]
    return [
        one
        for at, one in enumerate(found)
        if one[0].name == chosen or at + 1 == len(found) or found[at + 1][0].shape != one[0].shape
    ]


def reached(graph: Graph, inputs: set[str]) -> set[str]:
    """Every tensor that depends on one of these inputs, themselves included; nodes of a valid graph stand in order of
    computation."""
    reach = set(inputs)
    for node in graph.nodes:
        if any(name in reach for name in node.input):
            reach.update(name for name in node.output if name)
    return reach


def waists(graph: Graph, reach: set[str]) -> set[str]:
    """Tensors that all later computation on the image passes through."""
    last: dict[str, int] = {}
    for at, node in enumerate(graph.nodes):
        last |= {name: at for name in node.input if name in reach}
    live, found = set[str](), set[str]()
    for at, node in enumerate(graph.nodes):
        live |= {name for name in node.output if name in reach and last.get(name, -1) > at}
        live -= {name for name in live if last[name] <= at}
        if len(live) == 1:
            found |= live
    return found


def said_by_head(graph: Graph, image: str, layout: str) -> dict[str, Any]:
    """Preprocessing that the graph's first operations do themselves, as the fields of what is left to do outside.

    layout: of the image, NCHW or NHWC.
    Only normalisations that are known conventions count: a learned scale looks alike but says nothing. A reversal of
    channels alone says BGR: converters put it in front of RGB networks that are to be fed as OpenCV reads.
    """
    scale, shift, turned = np.ones(3), np.zeros(3), False  # in the order of the input's channels
    for node, reverses in _head(graph, image, layout.index("C")):
        turned ^= reverses
        operand = _per_channel(graph, node)
        if operand is None:
            continue
        operand = operand[::-1] if turned else operand
        if node.op_type in ("Mul", "Div"):
            factor = operand if node.op_type == "Mul" else 1 / operand
            scale, shift = scale * factor, shift * factor
        else:
            shift = shift + (operand if node.op_type == "Add" else -operand)
    if np.array_equal(scale, np.ones(3)) and np.array_equal(shift, np.zeros(3)):
        return {"channels": "BGR"} if turned else {}
    return _convention(-shift / scale, 1 / scale, turned)


def _head(graph: Graph, image: str, axis: int) -> Iterator[tuple[Any, bool]]:
    """The chain of nodes from the image up to the first that computes; with whether it reverses the channels.

    axis: of the image's channels; a Transpose on the way moves it.
    """
    name = image
    for _ in range(REACH):
        users = graph.users.get(name, [])
        if not users:
            return
        node = users[0]
        if len(users) == 1 and node.op_type in ("Add", "Sub", "Mul", "Div", "Cast", "Transpose", "Identity"):
            if node.op_type in ("Sub", "Div") and node.input[0] != name:
                return
            if node.op_type in ("Add", "Sub", "Mul", "Div") and _per_channel(graph, node) is None:
                return
            if node.op_type == "Transpose":
                perm = list(graph.attribute(node, "perm", range(IMAGE_AXES)[::-1]))
                if axis not in perm:
                    return
                axis = perm.index(axis)
            yield node, False
        elif len(users) == 1 and node.input[0] == name and _picks_backwards(graph, node, axis):
            yield node, True
        elif (joined := _put_together_backwards(graph, users, axis)) is not None:
            node = joined
            yield node, True
        else:
            return
        name = str(node.output[0])


def _picks_backwards(graph: Graph, node: Any, axis: int) -> bool:
    """Whether a node takes the three channels, on this axis, in reverse: a Gather of 2, 1, 0, or a Slice by steps of
    -1; along another axis the same is a mirror."""
    if node.op_type == "Gather" and len(node.input) > 1:
        places = graph.constant(str(node.input[1]))
        backwards = places is not None and places.ravel().tolist() in ([2, 1, 0], [-1, -2, -3])
        return backwards and _along(graph, node) == axis
    if node.op_type == "Slice" and len(node.input) == 5:
        starts, axes, steps = (_integers(graph, str(node.input[place])) for place in (1, 3, 4))
        axes = axes or list(range(len(starts)))
        if not len(starts) == len(axes) == len(steps):
            return False
        turned = [
            (at % IMAGE_AXES, start, step) for at, start, step in zip(axes, starts, steps, strict=True) if step != 1
        ]
        return [one[::2] for one in turned] == [(axis, -1)] and (turned[0][1] == -1 or turned[0][1] >= 2)
    return False


def _integers(graph: Graph, name: str) -> list[int]:
    """A small constant as a list, empty where there is none."""
    found = graph.constant(name) if name else None
    return [int(one) for one in found.ravel()] if found is not None and found.dtype.kind in "iu" else []


def _put_together_backwards(graph: Graph, users: Sequence[Any], axis: int) -> Any | None:
    """The Concat that puts three channels, on this axis, together again in reverse, which one Split or three Slices, or
    three Gathers of one place each, took apart; None where that is not what happens."""
    if len(users) == 1 and users[0].op_type == "Split":
        parts = [str(one) for one in users[0].output]
    elif len(users) == 3 and len({one.op_type for one in users}) == 1 and users[0].op_type in ("Slice", "Gather"):
        starts = [_integers(graph, str(one.input[1])) if len(one.input) > 1 else [] for one in users]
        order = {one[0]: str(node.output[0]) for one, node in zip(starts, users, strict=True) if len(one) == 1}
        if sorted(order) != [0, 1, 2]:
            return None
        parts = [order[place] for place in range(3)]
    else:
        return None
    after = [node for part in parts for node in graph.users.get(part, [])]
    if len(parts) != 3 or len({id(one) for one in after}) != 1 or after[0].op_type != "Concat":
        return None
    along = {_along(graph, one) for one in (*users, after[0])}
    return after[0] if along == {axis} and list(after[0].input) == parts[::-1] else None


def _along(graph: Graph, node: Any) -> int | None:
    """The one axis of an image batch that a Split, Gather, Concat or Slice works on."""
    if node.op_type != "Slice":
        said = graph.attribute(node, "axis", 0)
        return said % IMAGE_AXES if isinstance(said, int) else None
    axes = _integers(graph, str(node.input[3])) if len(node.input) > 3 else []
    return axes[0] % IMAGE_AXES if len(axes) == 1 else None


def _per_channel(graph: Graph, node: Any) -> NDArray[np.float64] | None:
    """The constant operand of an arithmetic node as three numbers."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    for name in node.input:
        value = graph.constant(name)
        if value is not None and value.size in (1, 3) and np.issubdtype(value.dtype, np.number):
            numbers = np.broadcast_to(value.astype(np.float64).ravel(), 3)
            if np.isfinite(numbers).all() and not (node.op_type in ("Mul", "Div") and (numbers == 0).any()):
                return numbers
    return None


def _convention(mean: NDArray[np.float64], std: NDArray[np.float64], turned: bool) -> dict[str, Any]:
    """Fields for the outside where the inside computes (x − mean) / std by a known convention, else nothing."""
    for known_mean, known_std in NORMALISATIONS:
        for top in (1.0, 255.0):
            if top == 1.0 and known_std == (1.0,) * 3 and not any(known_mean):
                continue  # a learned scale close to 1: nothing was normalised
            for backwards in (False, True):
                wanted_mean, wanted_std = (np.array(one[::-1] if backwards else one) for one in (known_mean, known_std))
                if np.allclose(mean, wanted_mean * top, rtol=0.02, atol=0.01 * top) and np.allclose(
                    std, wanted_std * top, rtol=0.02
                ):
                    level = len(set(known_mean)) == 1  # the same for each channel: says nothing of their order
                    return {
                        "scale": 1 / 255 if top == 1.0 else 1.0,
                        "mean": (0.0, 0.0, 0.0),
                        "std": (1.0, 1.0, 1.0),
                        "channels": "BGR" if (turned if level else backwards) else "RGB",
                        "said_by": "graph (its first operations normalise)",
                    }
    return {}
