"""The door to auto_LiRPA.

Shims that leave nothing behind, first layers, shared tensors and clear errors.
"""

import copy
import importlib.util
import logging
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, host
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import Lambda
from lirpa_multinorm.errors import HostImportError, InvalidArgumentError, UnsupportedModelError
from lirpa_multinorm.utils import distributed

from auto_LiRPA.bound_ops import BoundDropout  # isort: skip  (the package makes it importable)

SHAPE = (2, 6, 6)


def traced(model, **options):
    with host.tracing():
        return host.HostModule(
            model, torch.zeros(1, *SHAPE), bound_opts=dict(host.DEFAULT_OPTIONS, **options)
        )


# --- importing ------------------------------------------------------------------------------------

LEFT_BEHIND = """
import importlib, sys, torch, numpy
import torch.onnx.symbolic_helper as helper
names = ("_set_opset_version",)
before = (
    [hasattr(helper, name) for name in names],
    hasattr(torch._C.Node, "__getitem__"),
    torch.get_default_dtype(),
)
import lirpa_multinorm
after = (
    [hasattr(helper, name) for name in names],
    hasattr(torch._C.Node, "__getitem__"),
    torch.get_default_dtype(),
)
stand_in = sys.modules.get("numpy.lib.arraysetops")
print(before == after, stand_in is None or stand_in.__spec__ is not None)
"""


def test_import_leaves_no_shims_behind():
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEFT_BEHIND],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.split()[-2:] == ["True", "True"], done.stdout + done.stderr


@pytest.mark.parametrize("missing", ["auto_LiRPA", "auto_LiRPA.patches"])
def test_a_missing_host_names_the_remedy(missing, monkeypatch):
    """The file is imported again under another name, with the host (or part of it) out of reach."""
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location(
        "lirpa_multinorm.host._again", host._load.__file__
    )
    with pytest.raises(
        HostImportError, match=r"(?s)cannot be imported.*pip install --no-deps auto_LiRPA==0.3"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- tracing --------------------------------------------------------------------------------------


def exporter_settings():
    return dict(vars(host._load._exporter_globals()))


@pytest.mark.parametrize("fails", [False, True], ids=["fine", "failing"])
def test_tracing_restores_what_it_changes(fails, capsys):
    before = (exporter_settings(), hasattr(torch._C.Node, "__getitem__"), BoundDropout.forward)
    handlers = [
        list(logging.getLogger(name).handlers) for name in ("auto_LiRPA", "auto_LiRPA.utils")
    ]
    try:
        traced(nn.Sequential(nn.Flatten(), Lambda(torch.erfinv) if fails else nn.ReLU()))
        assert not fails
    except UnsupportedModelError:
        assert fails
    assert before == (
        exporter_settings(),
        hasattr(torch._C.Node, "__getitem__"),
        BoundDropout.forward,
    )
    assert handlers == [
        list(logging.getLogger(name).handlers) for name in ("auto_LiRPA", "auto_LiRPA.utils")
    ]
    assert capsys.readouterr().out == ""


def test_unsupported_operators_are_named_once_with_their_places():
    model = nn.Sequential(nn.Flatten(), Lambda(torch.erfinv), nn.ReLU(), Lambda(torch.erfinv))
    with pytest.raises(UnsupportedModelError) as caught:
        traced(model)
    text = str(caught.value)
    assert text.lower().count("erfinv at /") == 2 and "custom_ops" in text and host.version in text


def test_other_failures_of_the_tracer_are_reported():
    with (
        pytest.raises(UnsupportedModelError, match=r"cannot trace it \(IndexError: out of reach\)"),
        host.tracing(),
    ):
        raise IndexError("out of reach")


def test_errors_of_the_package_pass_the_tracer():
    with pytest.raises(InvalidArgumentError, match="^mine$"), host.tracing():
        raise InvalidArgumentError("mine")


def test_the_hosts_interval_arithmetic_survives_the_shims():
    """A small network by hand, so that a shim that distorts the host would show."""
    model, x = build_graph("conv"), torch.rand(2, *SHAPE)
    ball = host.PerturbationLpNorm(norm=float("inf"), eps=0.1)
    result = traced(model).compute_bounds(x=(host.BoundedTensor(x, ball),), method="IBP")
    conv, first, last = model[0], model[3], model[5]
    centre, radius = conv(x), F.conv2d(torch.full_like(x, 0.1), conv.weight.abs(), padding=1)
    lo, hi = (end.relu().flatten(1) for end in (centre - radius, centre + radius))
    for layer in (first, last):
        centre, radius = layer((lo + hi) / 2), ((hi - lo) / 2).matmul(layer.weight.abs().t())
        lo, hi = centre - radius, centre + radius
        lo, hi = (lo.relu(), hi.relu()) if layer is first else (lo, hi)
    for item, other in zip(result, (lo, hi)):
        assert torch.allclose(item, other, atol=1e-5)


# --- first layers ---------------------------------------------------------------------------------

# Graph -> operators before each first layer; a graph without one starts with something that is not
# affine and element-wise. The batch norm counts in evaluation only.
CHAINS = {
    "mlp": [["Flatten"]],
    "conv": [[]],
    "linear_only": [["Flatten"]],
    "standardize": [["Sub", "Mul"]],
    "standardize_flatten": [["Sub", "Mul", "Flatten"]],
    "scalar_normalize": [["Sub", "Mul"]],
    "flatten_scale": [["Flatten", "Mul", "Sub"]],
    "relu_first": [],
    "sigmoid_first": [],
    "max_pool_first": [],
    "average_pool_first": [],
    "negate": [["Neg"]],
    "scale": [["Mul"]],
    "one_minus": [["Sub"]],
    "input_skip": [[]],
    "conv_conv": [[]],
    "conv_batch_norm": [[]],
    "batch_norm_first": [["BatchNormalization"]],
    "residual": [[]],
    "two_branches": [[], []],
    "strided_dilated_grouped": [[]],
}


def chains(module):
    """The newer host makes a multiplication of a division by a constant."""
    return sorted(
        [type(node).__name__[5:].replace("Div", "Mul") for node in layer.chain]
        for layer in host.first_layers(module).values()
    )


@pytest.mark.parametrize("name,expected", CHAINS.items(), ids=CHAINS)
def test_first_layers(name, expected):
    module = traced(build_graph(name))
    module.eval()
    assert chains(module) == sorted(expected)
    assert all(
        type(layer.root).__name__ == "BoundInput" for layer in host.first_layers(module).values()
    )


def test_a_batch_norm_in_training_is_no_constant_scale():
    module = traced(build_graph("batch_norm_first"))
    module.train()
    assert chains(module) == []


@pytest.mark.parametrize("name", [name for name in CHAINS if CHAINS[name]])
def test_the_chain_computes_what_the_layer_sees(name):
    model, x = build_graph(name), torch.rand(3, *SHAPE)
    module = traced(model)
    module.eval()
    seen = []
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    for layer in host.first_layers(module).values():
        value = host.run_chain(module, layer, x)
        assert any(
            value.shape == item.shape and torch.allclose(value, item, atol=1e-5) for item in seen
        )
        moved = host.run_chain(module, layer, x, reshapes_only=True)
        assert torch.equal(moved.flatten(), x.flatten()) and moved.shape == value.shape


KINDS = {
    "conv": (False, False),
    "mlp": (True, False),
    "standardize": (False, True),
    "standardize_flatten": (True, True),
}


@pytest.mark.parametrize("name,kinds", KINDS.items(), ids=KINDS)
def test_kinds_of_chains(name, kinds):
    (layer,) = host.first_layers(traced(build_graph(name))).values()
    assert host.chain_kinds(layer) == kinds


@pytest.mark.parametrize("name", ["conv", "mlp", "strided_dilated_grouped"])
def test_constants_of_a_layer_are_the_models(name):
    model = build_graph(name)
    module = traced(model)
    (layer,) = host.first_layers(module).values()
    ours = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    constants = host.layer_constants(module, layer)
    assert torch.equal(host.layer_weight(layer, constants), ours.weight)
    assert torch.equal(constants[-1], ours.bias)
    assert layer.is_conv is isinstance(ours, nn.Conv2d)
    if layer.is_conv:
        x = torch.rand(2, *SHAPE)
        assert torch.allclose(
            F.conv2d(x, ours.weight, ours.bias, **host.kernel_options(layer)), ours(x), atol=1e-6
        )


@pytest.mark.parametrize("specification", [False, True], ids=["outputs", "differences"])
def test_propagate_box_is_interval_arithmetic(specification):
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    module = traced(model)
    (layer,) = host.first_layers(module).values()
    C = torch.randn(2, 4, 3) if specification else None
    lo = torch.rand(2, 72)
    result = host.propagate_box(layer, (lo, lo + 0.2), host.layer_constants(module, layer), C)
    weight = model[1].weight if C is None else C.matmul(model[1].weight)
    centre = (
        model[1](lo + 0.1) if C is None else C.matmul(model[1](lo + 0.1).unsqueeze(-1)).squeeze(-1)
    )
    radius = 0.1 * weight.abs().sum(-1)
    assert torch.allclose(result[0], centre - radius, atol=1e-5)
    assert torch.allclose(result[1], centre + radius, atol=1e-5)


# --- tensors --------------------------------------------------------------------------------------


def test_nodes_share_the_models_tensors():
    model = build_graph("conv_batch_norm")
    module = traced(model)
    host.share_tensors(module, model)
    nodes = {
        node.ori_name: node for node in module._modules.values() if getattr(node, "ori_name", None)
    }
    assert nodes["0.weight"].forward() is model[0].weight
    assert nodes["1.running_mean"].forward() is model[1].running_mean
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].running_mean.add_(0.5)
    x = torch.rand(2, *SHAPE)
    module.eval()
    assert torch.allclose(module(x), model(x), atol=1e-5)


NORMED = {
    "images": (nn.BatchNorm2d(2), SHAPE),
    "vectors": (nn.BatchNorm1d(72), (72,)),
    "momentum": (nn.BatchNorm2d(2, eps=1e-3, momentum=0.4), SHAPE),
    "vectors_momentum": (nn.BatchNorm1d(72, momentum=0.25), (72,)),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layer, shape", NORMED.values(), ids=NORMED)
def test_batch_norm_over_all_processes_is_batch_norm(layer, shape, training, monkeypatch):
    """With one process that believes to be one of several.

    Output, gradients, statistics and bounds are torch's.
    """
    first = nn.Linear(72, 72) if len(shape) == 1 else nn.Conv2d(2, 2, 3, padding=1)
    model = nn.Sequential(first, layer, nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    model, twin = copy.deepcopy(model), copy.deepcopy(model)
    x, module = torch.rand(5, *shape), BoundedModule(model, perturbations=[PerturbationLinf(0.0)])
    monkeypatch.setattr(distributed, "is_active", lambda: True)
    monkeypatch.setattr(distributed, "all_sum", lambda value: value)
    module.train(training), twin.train(training)
    single, other = module(x), twin(x)
    assert torch.allclose(single, other, atol=1e-5)
    for output in (single, other):
        output.square().sum().backward()
    for result, expected in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(result.grad, expected.grad, atol=1e-3, rtol=1e-3)
    assert torch.allclose(model[1].running_mean, twin[1].running_mean, atol=1e-6)
    assert torch.allclose(model[1].running_var, twin[1].running_var, atol=1e-6)
    lower, upper = module.compute_bounds(x, method="IBP")
    single = single if training else model(x)
    assert torch.allclose(lower, single, atol=1e-5) and torch.allclose(upper, single, atol=1e-5)


UNFOLDED = {"plain": (3, 1, 0), "padded": (3, 1, 1), "strided": (2, 2, 0), "both": (3, 2, 1)}


@pytest.mark.parametrize("size,stride,padding", UNFOLDED.values(), ids=UNFOLDED)
def test_unfold_shows_each_patch(size, stride, padding):
    image = torch.rand(2, *SHAPE)
    columns = F.unfold(image, size, padding=padding, stride=stride)
    out = (SHAPE[1] + 2 * padding - size) // stride + 1
    patches = host.Patches(
        torch.zeros(1, 2, out, out, 2, size, size),
        stride=stride,
        padding=padding,
        shape=(1, 2, out, out, 2, size, size),
        output_shape=(2, 1, out, out),
    )
    seen = host.unfold(image, patches)
    assert torch.equal(seen.flatten(1, 2).flatten(2), columns.transpose(1, 2))


@pytest.mark.parametrize(
    "damage,expected",
    [(None, False), ("lower", True), ("upper", True)],
    ids=["clean", "lower", "upper"],
)
def test_nodes_with_nan_are_found(damage, expected):
    module = traced(build_graph("conv"))
    ball = host.PerturbationLpNorm(norm=float("inf"), eps=0.1)
    module.compute_bounds(x=(host.BoundedTensor(torch.rand(1, *SHAPE), ball),), method="IBP")
    node = [node for node in module._modules.values() if getattr(node, "lower", None) is not None][
        -1
    ]
    if damage:
        with torch.no_grad():
            setattr(node, damage, getattr(node, damage).detach() * float("nan"))
    names, broken = host.nan_nodes(module)
    assert broken is not None
    result = [name for name, wrong in zip(names, broken.tolist()) if wrong]
    assert result == [node.name] * expected
