"""Narrower networks: which channels go together, how many stay, what they make, that their shape is made again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_exports import export, network
from torch import fx, nn

from distilltool import pruning, trainable
from distilltool.channels import Axis, Channels, Dense, channels
from distilltool.errors import DistillError
from distilltool.pruning import Narrow, fit, kept_of, prune

RNG = np.random.default_rng(0)


def real(*shape: int) -> Any:
    """Random weights of a size that keeps a signal's."""
    return RNG.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)


def model_of(nodes: list[tuple[Any, ...]], weights: dict[str, Any], last: str = "y") -> onnx.ModelProto:
    """A graph from x, (N, 3, 16, 16), of nodes (kind, inputs, output, attributes)."""
    made = [helper.make_node(kind, read.split(), [out], **more) for kind, read, out, more in nodes]
    held = [numpy_helper.from_array(np.asarray(one), name) for name, one in weights.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    graph = helper.make_graph(made, "graph", [image], [onnx.ValueInfoProto(name=last)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


END = [("GlobalAveragePool", "m", "p", {}), ("Flatten", "p", "y", {})]


def residual(normed: bool = True) -> onnx.ModelProto:
    """A stem, a bottleneck with a depthwise convolution added to it, and a last layer of 24."""
    pads = {"pads": [1, 1, 1, 1]}
    weights = {
        "w0": real(32, 3, 3, 3), "b0": real(32, 1)[:, 0], "w1": real(64, 32, 1, 1), "b1": real(64, 1)[:, 0],
        "wd": real(64, 1, 3, 3), "bd": real(64, 1)[:, 0], "w2": real(32, 64, 1, 1), "w3": real(24, 32, 1, 1),
        "b3": real(24, 1)[:, 0], "s": np.ones(32, np.float32), "m": np.zeros(32, np.float32),
    }  # fmt: skip
    nodes = [
        ("Conv", "x w0 b0", "c0", pads), ("Relu", "c0", "r0", {}), ("Conv", "r0 w1 b1", "c1", {}),
        ("Relu", "c1", "r1", {}), ("Conv", "r1 wd bd", "cd", {"group": 64, **pads}), ("Relu", "cd", "rd", {}),
        ("Conv", "rd w2", "c2", {}), ("BatchNormalization", "c2 s m m s", "n2", {}), ("Add", "n2 r0", "a", {}),
        ("Conv", "a w3 b3", "m_", {}), ("GlobalAveragePool", "m_", "p", {}), ("Flatten", "p", "y", {}),
    ]  # fmt: skip
    return model_of(nodes, weights)


def squeezed() -> onnx.ModelProto:
    """Two convolutions side by side, joined, and read by a third."""
    weights = {"w0": real(16, 3, 1, 1), "w1": real(32, 16, 1, 1), "w2": real(16, 16, 1, 1), "w3": real(8, 48, 1, 1)}
    nodes = [
        ("Conv", "x w0", "c0", {}), ("Relu", "c0", "r", {}), ("Conv", "r w1", "c1", {}), ("Conv", "r w2", "c2", {}),
        ("Concat", "c1 c2", "j", {"axis": 1}), ("Conv", "j w3", "m", {}), *END,
    ]  # fmt: skip
    return model_of(nodes, weights)


def images(count: int = 12, side: int = 16) -> torch.Tensor:
    """Smooth noise, as images are."""
    torch.manual_seed(1)
    return torch.nn.functional.interpolate(
        torch.randn(count, 3, side // 4, side // 4), size=(side, side), mode="bicubic"
    )


def shapes(module: fx.GraphModule) -> list[tuple[int, ...]]:
    """Of all convolutions' and linear layers' weights, in order."""
    return [tuple(one.weight.shape) for one in module.modules() if isinstance(one, nn.Conv2d | nn.Linear)]


def test_a_channel_goes_with_all_that_is_added_to_it_or_grouped_by_it() -> None:
    """The stem with the bottleneck's end, its inside with the depthwise layer; what comes out stays."""
    module = trainable.build(residual())
    thin = prune(module, 0.5, images(), 0, "file").module
    assert shapes(thin) == [(16, 3, 3, 3), (32, 16, 1, 1), (32, 1, 3, 3), (16, 32, 1, 1), (24, 16, 1, 1)]
    assert [one.groups for one in thin.modules() if isinstance(one, nn.Conv2d)] == [1, 1, 32, 1, 1]
    assert [one.num_features for one in thin.modules() if isinstance(one, nn.BatchNorm2d)] == [16]
    assert sorted(map(len, channels(module, images(1)).layers().values())) == [32, 64]


def test_what_is_joined_is_counted_apart() -> None:
    module = trainable.build(squeezed())
    assert shapes(prune(module, 0.5, images(), 0, "file").module) == [
        (8, 3, 1, 1), (16, 8, 1, 1), (8, 8, 1, 1), (8, 24, 1, 1),
    ]  # fmt: skip


def test_what_is_left_is_what_a_mask_would_leave() -> None:
    """Unfitted, it computes what the wide network does with zeros where the channels were that are gone."""
    module = trainable.build(residual())
    thin = prune(module, 0.5, images(), 0, "file", refit=False).module
    masked = trainable.build(residual())
    masked.load_state_dict(module.state_dict())
    layers = [[one for one in net.modules() if isinstance(one, nn.Conv2d)] for net in (masked, thin)]
    with torch.no_grad():
        for at, readers in (
            (0, (1, 4)),
            (1, (3,)),
        ):  # the stem, read twice; the inside, read behind its depthwise layer
            biases = layers[1][at].bias
            stays = torch.isin(layers[0][at].bias, biases)
            assert int(stays.sum()) == len(biases) == len(stays) // 2
            for reader in readers:
                layers[0][reader].weight[:, ~stays] = 0
        assert torch.allclose(masked(images()), thin(images()), atol=1e-5)


def test_the_whole_width_changes_nothing() -> None:
    module = trainable.build(residual())
    pruned = prune(module, 1.0, images(), 0, "file")
    assert torch.equal(pruned.module(images()), module(images())) and pruned.share == 1.0
    assert not pruned.narrow.shapes


def test_counts_are_mobilenets() -> None:
    """Eights from 16 on, never a tenth less than asked for; some channel always."""
    assert [kept_of(count, 0.5) for count in (1, 2, 5, 15, 16, 24, 64, 100)] == [1, 1, 2, 8, 8, 16, 32, 48]
    assert [kept_of(count, 0.01) for count in (3, 16, 1000)] == [1, 8, 16]
    assert kept_of(20, 1.0) == 20


def test_share_is_what_torch_counts() -> None:
    """By hand: each layer's outputs times its inputs, at 16×16."""
    module = trainable.build(squeezed())
    whole = 16 * 3 + 32 * 16 + 16 * 16 + 8 * 48
    assert prune(module, 0.5, images(), 0, "file").share == pytest.approx((8 * 3 + 16 * 8 + 8 * 8 + 8 * 24) / whole)


def test_what_is_dead_on_the_images_goes_first() -> None:
    """Channels that are dead on the images go first."""
    model = squeezed()
    weights = {one.name: numpy_helper.to_array(one).copy() for one in model.graph.initializer}
    weights["w0"] = np.abs(weights["w0"])
    weights["w0"][::2] *= -1  # dead: the images below are positive, and a ReLU follows
    for one in model.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(weights[one.name], one.name))
    module = trainable.build(model)
    bright = images().abs() + 0.1
    thin = prune(module, 0.5, bright, 0, "file", refit=False)
    with torch.no_grad():
        first = next(one for one in thin.module.modules() if isinstance(one, nn.Conv2d))
        assert (first(bright).amax((0, 2, 3)) > 0).all()


class Tokens(nn.Module):
    """A layer that reads tokens, by image or all in one row."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.layer, self.flat = nn.Linear(5, 2), flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(0, 1) if self.flat else x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("flat", [False, True])
def test_energies_are_means_over_all_images(flat: bool) -> None:
    """However many come at once, and however a layer has its rows."""
    x = torch.randn(20, 7, 5) * torch.arange(1.0, 6) + 3  # 16 and 4 at once
    axis = Axis(at=-1, ids=torch.arange(5))
    found = SimpleNamespace(dense=[Dense(path="layer", read=axis, made=axis)])
    made = pruning._moments(fx.symbolic_trace(Tokens(flat)), cast("Channels", found), x)["layer"]
    torch.testing.assert_close(made.mean, x.double().mean((0, 1)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.square, x.double().square().mean((0, 1)), rtol=1e-5, atol=1e-5)


def test_fitting_makes_up_for_channels_that_others_can_stand_in_for() -> None:
    """Half of the first layer repeats the other half: fitted, nothing is lost; unfitted, much is."""
    model = squeezed()
    weights = {one.name: numpy_helper.to_array(one).copy() for one in model.graph.initializer}
    weights["w0"][8:] = 2 * weights["w0"][:8]
    for one in model.graph.initializer:
        if one.name == "w0":
            one.CopyFrom(numpy_helper.from_array(weights["w0"], "w0"))
    module = trainable.build(model)
    wide, x = module(images()), images()
    off = {}
    for refit in (False, True):
        thin = prune(module, 0.7, x, 0, "file", refit=refit).module
        off[refit] = ((thin(x) - wide).norm() / wide.norm()).item()
    assert off[True] < 0.5 * off[False]


def test_a_fit_is_the_least_squares_solution() -> None:
    """Against numpy, where rows are many; with few, the weights stay near what they were."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).requires_grad_(False)
    x, y = torch.randn(60_000, 6), torch.randn(60_000, 4)
    y = y + x @ torch.randn(6, 4)
    before = layer.weight.clone()
    fit(layer, x, y, torch.Generator().manual_seed(0))
    solved = np.linalg.lstsq(np.c_[x.numpy(), np.ones(len(x))], y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(layer.weight.numpy(), solved[:6].T, atol=0.08)  # of a sample of the rows
    np.testing.assert_allclose(layer.bias.numpy(), solved[6], atol=0.08)
    few = nn.Linear(6, 4).requires_grad_(False)
    few.weight.copy_(before)
    fit(few, x[:1], y[:1], torch.Generator().manual_seed(0))
    assert (few.weight - before).norm() < (layer.weight - before).norm()


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "dilation": 2, "padding": (2, 3)},
        {"kernel_size": 1, "stride": 2, "padding": 1},
    ],
)
def test_rows_are_what_a_convolution_reads_there(how: dict[str, Any]) -> None:
    """Weighted, they make what it makes at these places."""
    layer, x = nn.Conv2d(4, 6, **how).requires_grad_(False), torch.randn(3, 4, 13, 11)
    rows, made = pruning._rows(layer, x, layer(x), 60, torch.Generator().manual_seed(0))
    assert len(rows) == len(made) == 60
    torch.testing.assert_close(pruning.layer_of_rows(layer, rows), made, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("made", [residual, squeezed])
def test_the_shape_is_made_again_from_what_is_kept(made: Any) -> None:
    """A graph without numbers and the text of what was taken out give the network that the weights fit into."""
    model = made()
    pruned = prune(trainable.build(model), 0.5, images(), 0, "file")
    again = trainable.build(trainable.architecture(model))
    pruning.shrink(again, Narrow.from_json(pruned.narrow.to_json()))
    again.load_state_dict(pruned.module.state_dict())
    for count, side in ((1, 16), (3, 24)):
        x = images(count, side)
        assert torch.equal(again(x), pruned.module(x))


def test_a_narrow_network_trains() -> None:
    """Gradients reach every weight."""
    thin = prune(trainable.build(residual()), 0.5, images(), 0, "file").module
    thin(images()).square().sum().backward()
    assert all(one.grad is not None and bool((one.grad != 0).any()) for one in thin.parameters())


def test_the_wide_network_is_left_as_it_is() -> None:
    module = trainable.build(residual())
    before = {name: one.clone() for name, one in module.state_dict().items()}
    prune(module, 0.5, images(), 0, "file")
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())


def test_the_same_seed_gives_the_same_network() -> None:
    module = trainable.build(residual())
    one, other = (prune(module, 0.5, images(), 3, "file").module.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_of_one_layer_cannot_be_narrower() -> None:
    """What comes out is all there is."""
    model = model_of([("Conv", "x w", "m", {}), *END], {"w": real(16, 3, 3, 3)})
    with pytest.raises(DistillError, match="file cannot be made narrower"):
        prune(trainable.build(model), 0.5, images(), 0, "file")


def test_the_operation_that_forbids_it_is_named() -> None:
    nodes = [
        ("Conv", "x w", "c", {}), ("DepthToSpace", "c", "d", {"blocksize": 2}), ("Conv", "d v", "m", {}), *END,
    ]  # fmt: skip
    model = model_of(nodes, {"w": real(16, 3, 1, 1), "v": real(8, 4, 1, 1)})
    with pytest.raises(DistillError, match="depth_to_space"):
        prune(trainable.build(model), 0.5, images(), 0, "file")


def test_channels_that_are_shuffled_stay(tmp_path: Path) -> None:
    """As ShuffleNet does: two axes hold them for a while, which no list of channels can say."""
    nodes = [
        ("Conv", "x w", "c", {}), ("Reshape", "c two", "d", {}), ("Transpose", "d", "t", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", "t one", "e", {}), ("Conv", "e v", "f", {}), ("Conv", "f u", "m", {}), *END,
    ]  # fmt: skip
    sides = {"two": np.array([-1, 2, 8, 16, 16], np.int64), "one": np.array([-1, 16, 16, 16], np.int64)}
    module = trainable.build(
        model_of(nodes, {"w": real(16, 3, 1, 1), "v": real(32, 16, 1, 1), "u": real(8, 32, 1, 1), **sides}),
        size=(16, 16),
    )
    thin = prune(module, 0.5, images(), 0, "file").module
    assert shapes(thin) == [(16, 3, 1, 1), (16, 16, 1, 1), (8, 16, 1, 1)]
    assert thin(images()).shape == (12, 8)


def test_sides_that_the_graph_fixes_follow() -> None:
    """A reshape to as many channels as there were."""
    nodes = [
        ("Conv", "x w", "c", {}), ("Reshape", "c sides", "d", {}), ("Conv", "d v", "m", {}), *END,
    ]  # fmt: skip
    weights = {"w": real(16, 3, 1, 1), "v": real(8, 16, 1, 1), "sides": np.array([-1, 16, 16, 16], np.int64)}
    model = model_of(nodes, weights)
    thin = prune(trainable.build(model, size=(16, 16)), 0.5, images(), 0, "file")
    assert shapes(thin.module) == [(8, 3, 1, 1), (8, 8, 1, 1)] and list(thin.narrow.sides.values()) == [(1, 8)]
    assert thin.module(images()).shape == (12, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_networks_as_pytorch_exports_them(tmp_path: Path, name: str) -> None:
    """Attention, LayerNorm and gates: narrower, at another batch, and rebuilt; what comes out keeps its width."""
    x = torch.randn(8, 3, 224, 224)
    model = trainable.read_whole(export(network(name, 0), tmp_path / "m.onnx", x[:2], False))
    module = trainable.build(model)
    pruned = prune(module, 0.5, x, 0, name)
    assert pruned.share < 0.75
    assert pruned.module(x[:3]).shape == module(x[:3]).shape
    again = trainable.build(trainable.architecture(model))
    pruning.shrink(again, Narrow.from_json(pruned.narrow.to_json()))
    again.load_state_dict(pruned.module.state_dict())
    assert torch.equal(again(x[:1]), pruned.module(x[:1]))
