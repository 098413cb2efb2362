"""What quantisers share: what of a graph is left as it is, what is prepared for them, and what harms most."""

import contextlib
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization import qdq_loss_debug as debug
from onnxruntime.quantization.shape_inference import quant_pre_process

from distilltool.errors import DistillError
from distilltool.precisions import Given

WEIGHTED = ("Conv", "Gemm", "MatMul")


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images as onnxruntime asks for them, a batch at a time."""

    def __init__(self, name: str, batches: Iterator[NDArray[np.uint8]]) -> None:
        self._name, self._batches = name, batches

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next feeds; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def around(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes before the first and behind the last layer with weights: scaling of pixels, pooling, length 1.

    What they compute is cheap, and an error there reaches every number of a vector.
    """
    users = defaultdict[str, list[onnx.NodeProto]](list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)
    nodes = list(model.graph.node)  # in topological order, as the checker demands
    after, before = set[str](), set[str]()  # names of tensors that come from, and lead to, a layer with weights
    for node in nodes:
        if any(name in after for name in node.input) or _weighted(node):
            after.update(node.output)
    for node in reversed(nodes):
        if any(one.op_type in WEIGHTED or any(name in before for name in one.output) for one in _users(node, users)):
            before.update(node.output)
    left = [
        node.name
        for node in nodes
        if not _weighted(node)
        and (not any(name in after for name in node.output) or not any(name in before for name in node.output))
    ]
    return tuple(left)


def _users(node: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    return [user for name in node.output for user in users[name]]


def _weighted(node: onnx.NodeProto) -> bool:
    return node.op_type in WEIGHTED


def check_there_is(model: onnx.ModelProto, kinds: Sequence[str], leave: Sequence[str]) -> None:
    """Fail where no layer of these kinds has weights to quantise."""
    if not weights_in(model, kinds, leave):
        raise DistillError(f"it has no {' or '.join(kinds)} with weights to quantise", "leave this precision out")


def weights_in(model: onnx.ModelProto, kinds: Sequence[str], leave: Sequence[str] = ()) -> int:
    """Numbers in the weights of layers of these kinds."""
    sizes = {one.name: int(np.prod(one.dims)) for one in model.graph.initializer}
    return sum(
        sizes.get(name, 0)
        for node in model.graph.node
        if node.op_type in kinds and node.name not in leave
        for name in node.input[1:2]
    )


def prepared(given: Given) -> Path:
    """The graph as quantisers want it: shapes inferred, constants folded, without what confuses them."""
    model = onnx.ModelProto.FromString(given.model.SerializeToString())
    weights = {one.name for one in model.graph.initializer}
    kept = [one for one in model.graph.value_info if one.name not in weights]  # shapes of weights that are to change
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    raw, found = given.folder / "raw.onnx", given.folder / "prepared.onnx"
    onnx.save_model(model, raw)
    quant_pre_process(raw, found, skip_symbolic_shape=True)
    return found


def sensitive(given: Given, quantised: onnx.ModelProto, share: float) -> tuple[str, ...]:
    """Names of the nodes of a stretch of layers that loses most of the signal to quantisation.

    share: of the layers with weights, that are in it. What a layer loses is how far the signal-to-noise ratio falls
    from its input to its output, as onnxruntime's debugging tools measure it between both graphs. A stretch, not single
    layers: between quantised neighbours a layer in float32 is fed, and read, in 8 bits all the same.
    """
    names = [node.name for node in given.model.graph.node]
    layers = [node for node in given.model.graph.node if _weighted(node) and node.name not in given.leave]
    kept = _signal(given, quantised)
    levels = [kept.get(node.input[0]) for node in layers]
    places = [(at, level) for at, level in enumerate(levels) if level is not None]
    if len(places) < 2:
        return ()
    filled = np.interp(np.arange(len(layers)), [at for at, _ in places], [level for _, level in places])
    count = max(1, min(round(share * len(layers)), len(layers) - 1))
    lost = filled[:-count] - filled[count:]
    first = int(np.argmax(lost))
    between = slice(names.index(layers[first].name), names.index(layers[first + count - 1].name) + 1)
    return tuple(names[between])


def _signal(given: Given, quantised: onnx.ModelProto) -> dict[str, float]:
    """Signal-to-noise ratio in dB of the tensors of a quantised graph, beside those of the float32 graph."""
    first, images = next(given.batches()), given.model.graph.input[0].name
    plain, altered = prepared(given), given.folder / "quantised.onnx"
    onnx.save_model(quantised, altered)
    found = []
    with quiet():
        for graph in (plain, altered):
            opened = graph.with_suffix(".opened.onnx")
            debug.modify_model_output_intermediate_tensors(graph, opened)
            found.append(debug.collect_activations(str(opened), Images(images, iter([first]))))
        errors = debug.compute_activation_error(debug.create_activation_matching(found[1], found[0]))
    return {name: error["xmodel_err"] for name, error in errors.items() if np.isfinite(error.get("xmodel_err", np.nan))}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """onnxruntime's quantisers talk through the root logger and on stdout."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
