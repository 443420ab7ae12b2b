"""Networks as ONNX: folding keeps the logits, and the file computes what the model does."""

import sys

import pytest
import torch
from torch import nn

from lirpa_multinorm.abcrown.onnx_file import folded, write_onnx
from lirpa_multinorm.errors import InvalidArgumentError, MissingPackageError, UnsupportedModelError
from lirpa_multinorm.models import Normalize, build_model

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]


def after_normalisation(*layers, mean=MEAN):
    return nn.Sequential(Normalize(mean, STD), *layers).eval()


MODELS = {
    "conv": (after_normalisation(nn.Conv2d(3, 4, 3), nn.ReLU()), "Conv2d"),
    "conv_without_bias": (after_normalisation(nn.Conv2d(3, 4, 2, stride=2, bias=False)), "Conv2d"),
    "padding_of_zero_mean": (
        after_normalisation(nn.Conv2d(3, 4, 3, padding=1), mean=[0.0] * 3),
        "Conv2d",
    ),
    "padding": (after_normalisation(nn.Conv2d(3, 4, 3, padding=1)), "Conv2d Conv2d"),
    "padding_same": (after_normalisation(nn.Conv2d(3, 4, 3, padding="same")), "Conv2d Conv2d"),
    "padding_reflects": (
        after_normalisation(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), mean=[0.0] * 3),
        "Conv2d Conv2d",
    ),
    "groups": (after_normalisation(nn.Conv2d(3, 3, 3, groups=3)), "Conv2d Conv2d"),
    "linear": (
        after_normalisation(nn.Flatten(), nn.Linear(108, 4), nn.ReLU()),
        "Flatten Linear ReLU",
    ),
    "relu": (after_normalisation(nn.ReLU(), nn.Conv2d(3, 4, 3)), "Conv2d ReLU Conv2d"),
    "batch_norm": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 5),
            nn.BatchNorm1d(5),
        ).eval(),
        "Conv2d ReLU Flatten Linear",
    ),
    "nothing": (after_normalisation(), "Conv2d"),
    "no_normalisation": (nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).eval(), "Flatten Linear"),
}


@pytest.mark.parametrize("model, layers", MODELS.values(), ids=MODELS)
def test_folding_changes_no_logit(model, layers):
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean.uniform_(), norm.running_var.uniform_(0.5, 2)
    x, before = torch.rand(5, 3, 6, 6), [item.clone() for item in model.state_dict().values()]
    other = folded(model)
    assert torch.allclose(other(x), model(x), atol=1e-4) and not any(
        isinstance(item, Normalize) for item in other
    )
    kinds = [type(layer).__name__ for layer in other]
    assert " ".join(kinds).startswith(layers) and not other.training
    assert all(map(torch.equal, before, model.state_dict().values()))  # a copy


@pytest.mark.parametrize("name", ["mlp", "cnn_small", "cnn5", "resnet2b"])
def test_the_file_computes_what_the_model_does(name, tmp_path):
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    model = build_model(name, (3, 16, 16), 4, MEAN, STD).eval()
    path = write_onnx(model, torch.rand(2, 3, 16, 16), tmp_path / "model.onnx", [2])
    graph, x = onnx.load(path), torch.rand(3, 3, 16, 16)
    result = reference.ReferenceEvaluator(graph).run(None, {"x": x.numpy()})[0]
    assert torch.allclose(torch.as_tensor(result), model(x), atol=1e-4)
    assert not {"Sub", "Div", "Identity", "BatchNormalization"} & {
        node.op_type for node in graph.graph.node
    }


class Inner(nn.Module):
    """BatchNorm where nothing folds it away."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.linear(x.flatten(1)).relu())


def test_batch_normalisation_is_exported_as_in_eval_mode(tmp_path):
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    model = Inner()
    model.norm.running_mean.add_(0.3)
    x = torch.rand(4, 1, 4, 4)
    path = write_onnx(model, x, tmp_path / "model.onnx")
    assert model.training
    result = reference.ReferenceEvaluator(onnx.load(path)).run(None, {"x": x.numpy()})[0]
    assert torch.allclose(torch.as_tensor(result), model.eval()(x), atol=1e-5)


class Late(nn.Module):
    """No layer that is linear reads the input."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x.flatten(1) * 2)


def test_finite_norms_need_a_linear_layer_first(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(
        UnsupportedModelError, match="first operation is Mul; for p < inf .* export l_inf only"
    ):
        write_onnx(Late(), torch.rand(1, 1, 2, 2), tmp_path / "model.onnx", [2])
    assert not (tmp_path / "model.onnx").exists()
    assert write_onnx(
        Late(), torch.rand(1, 1, 2, 2), tmp_path / "model.onnx", [float("inf")]
    ).exists()


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if float(x.sum()) > 2 else -x.flatten(1)


def test_a_file_that_computes_something_else_is_refused(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(UnsupportedModelError, match="logits that differ"):
        write_onnx(Branching(), torch.tensor([[1.0, 0.5], [1.0, 0.5]]), tmp_path / "model.onnx")


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


def test_a_layer_that_onnx_lacks(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(UnsupportedModelError, match="cannot be written as ONNX"):
        write_onnx(Unknown(), torch.rand(1, 2, 2), tmp_path / "model.onnx")


def test_double_precision_is_refused(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(InvalidArgumentError, match="weight is torch.float64; .*model.float"):
        write_onnx(nn.Linear(2, 2).double(), torch.rand(1, 2), tmp_path / "model.onnx")


def test_without_the_package_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match="pip install onnx"):
        write_onnx(nn.Linear(2, 2), torch.rand(1, 2), tmp_path / "model.onnx")
