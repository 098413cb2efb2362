"""Write the weights of a MobileNetV2 ONNX file as safetensors that `--student timm:mobilenetv2_100 --weights` reads.

    python benchmarks/timm_weights_from_onnx.py mobilenetv2.onnx IMAGES weights.safetensors

Where no model hub can be reached, an ONNX file of the same architecture is a pretrained start too. Its batch-norms are
folded into the convolutions; they are put back here with the statistics that each convolution shows on `IMAGES`, and
with the scale and shift that undo them, so that the network computes the same as before and can be trained again.
The result is compared with onnxruntime at the end.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from distilltool import images
from distilltool.preprocess import Preprocess
from distilltool.student import to_pixels
from distilltool.students import Start, build

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of every convolution in the order of the graph."""
    model = onnx.load(path)
    values = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in model.graph.initializer}
    return [(values[node.input[1]], values[node.input[2]]) for node in model.graph.node if node.op_type == "Conv"]


def pairs(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions with the batch-norm that follows each, in the order of the forward pass."""
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    return list(zip(convs, norms, strict=True))


@torch.no_grad()
def fill(network: nn.Module, folded: list[tuple[Tensor, Tensor]]) -> None:
    """Copy folded convolutions into a network whose batch-norms then only add the bias."""
    for (conv, norm), (weight, bias) in zip(pairs(network), folded, strict=True):
        conv.weight.copy_(weight)
        norm.bias.copy_(bias)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)


@torch.no_grad()
def put_norms_back(network: nn.Module, batch_NCHW: Tensor) -> None:
    """Give every batch-norm the statistics of its input, and the scale and shift that leave its output as it was."""

    def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        bias = norm.bias.clone()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.weight.copy_((var + norm.eps).sqrt())
        norm.bias.copy_(bias + mean)

    handles = [norm.register_forward_pre_hook(hook) for _, norm in pairs(network)]
    network(batch_NCHW)
    for handle in handles:
        handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    args = parser.parse_args()
    network = build("timm:mobilenetv2_100", Start(input=224, seed=0)).module.eval()
    fill(network, convolutions(args.model))
    how = Preprocess(size=(224, 224), scale=1 / 255, **IMAGENET)
    rows, _ = images.load(images.find(args.images)[:256], how)
    mean, std = (torch.tensor(IMAGENET[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    put_norms_back(network, (to_pixels(rows) / 255 - mean) / std)
    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    theirs = np.asarray(session.run(None, {name: how.feed(rows[:8])})[0]).reshape(8, -1)
    with torch.no_grad():
        ours = network((to_pixels(rows[:8]) / 255 - mean) / std).numpy()
    worst = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if worst > 1e-3:
        raise SystemExit(f"the rebuilt network differs from {args.model} by {worst:.2g}")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, args.weights)
    print(f"{args.weights}: {len(pairs(network))} convolutions, largest relative difference {worst:.1e}")


if __name__ == "__main__":
    main()
