"""Networks as PyTorch exports them: the layer before the classifier, and the cost, against timm's and torch's own."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distilltool.anatomy import dissect
from distilltool.students.timm import _library
from distilltool.teacher import TeacherOptions, open_model

pytestmark = pytest.mark.slow
NAMES = ("resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto")


def network(name: str, classes: int) -> Any:
    """A timm network with random weights, biases and statistics, so that nothing folds away."""
    torch.manual_seed(0)
    module = _library().create_model(name, num_classes=classes).eval()
    for one in module.modules():
        if isinstance(one, torch.nn.BatchNorm2d):
            one.running_mean.normal_(0, 0.1)
            one.running_var.uniform_(0.5, 1.5)
        if hasattr(one, "fused_attn"):
            one.fused_attn = False  # torch counts no FLOPs of the fused kernel on a CPU
    return module


def export(module: Any, path: Path, images: torch.Tensor, new: bool) -> Path:
    """By the new exporter, or by the one that most files in the world were written with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if new:
            shapes = {"x": {0: torch.export.Dim("batch")}}
            torch.onnx.export(
                module, (images,), path, dynamo=True, external_data=False, verbose=False, dynamic_shapes=shapes
            )
        else:
            axes = {"x": {0: "batch"}}
            torch.onnx.export(module, (images,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return path


@pytest.mark.parametrize("head", ["trained", "untrained"])
@pytest.mark.parametrize("new", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", NAMES)
def test_penultimate_layer_is_timms_own(tmp_path: Path, name: str, new: bool, head: str) -> None:
    """A classifier of 1000 gives `forward_head(pre_logits=True)`, to float32's last digits, at the cost torch counts.

    untrained: the classifier's bias is zero, which the new exporter drops.
    """
    if head == "untrained" and (not new or name == "resnet18"):
        pytest.skip("nothing is dropped")
    module = network(name, 1000)
    classifier = module.get_classifier()
    if head == "trained":
        torch.nn.init.normal_(classifier.bias)
    images = torch.randn(2, 3, 224, 224)
    path = export(module, tmp_path / f"{name}.onnx", images, new)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        wanted = module.forward_head(module.forward_features(images), pre_logits=True).numpy()
    model = open_model(path, TeacherOptions())
    got = model.run(images.numpy())
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
    assert (model.dim or wanted.shape[1]) == wanted.shape[1] and model.choice.pool == "none"
    anatomy = dissect(path, TeacherOptions())
    assert anatomy.kind == "classifier" and anatomy.problem is None
    assert anatomy.flops == pytest.approx(counter.get_total_flops() / 2, rel=0.01) and anatomy.counted


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_not_cut(tmp_path: Path, name: str) -> None:
    """Exported without a classifier, the output is the embedding."""
    module = network(name, 0)
    images = torch.randn(2, 3, 224, 224)
    path = export(module, tmp_path / f"{name}.onnx", images, False)
    anatomy = dissect(path, TeacherOptions())
    assert anatomy.kind == "embedder" and anatomy.choice is not None
    assert anatomy.choice.tensor == anatomy.outputs[0].name
    with torch.no_grad():
        wanted = module(images).numpy()
    model = open_model(path, TeacherOptions())
    np.testing.assert_allclose(model.run(images.numpy()), wanted, atol=2e-5 * np.abs(wanted).max())
