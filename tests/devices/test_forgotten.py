"""A device that is forgotten in the package is found without a device, here and in every test."""

import ast

import pytest
import torch

from tests.devices.factories import (
    CONVERSIONS,
    FACTORIES,
    PACKAGE,
    WEIGHTS,
    forgotten_devices_on_meta,
)

NAMES = {name.rpartition(".")[2] for name in (*FACTORIES, "tensor")}


def run(code: str, folder: str = "bounds", inside: str = "helper"):
    """The value of an expression that stands in a function of a file of the package."""
    source = f"import torch\ndef {inside}(x):\n    return {code}\n"
    space: dict = {}
    exec(compile(source, str(PACKAGE / folder / "file.py"), "exec"), space)
    with forgotten_devices_on_meta():
        return space[inside](torch.ones(2))


@pytest.mark.parametrize(
    "code,device",
    [
        ("torch.zeros(2)", "meta"),
        ("torch.arange(2)", "meta"),
        ("torch.tensor([1.0])", "meta"),
        ("torch.as_tensor([1.0])", "meta"),
        ("torch.zeros(2, device=None)", "meta"),
        ("torch.zeros(2, device='cpu')", "cpu"),
        ("torch.zeros(2, device=x.device)", "cpu"),
        ("torch.as_tensor(x)", "cpu"),
        ("torch.zeros_like(x)", "cpu"),
        ("torch.nn.Linear(2, 2).weight", "cpu"),
    ],
    ids=lambda value: str(value),
)
def test_a_factory_of_the_package_makes_a_meta_tensor_unless_it_names_a_device(code, device):
    assert run(code).device.type == device


def test_weights_are_made_as_torch_makes_its_own():
    assert run("torch.zeros(2)", "models", "__init__").device.type == "cpu"
    assert run("torch.zeros(2)", "models", "forward").device.type == "meta"


def test_a_meta_tensor_that_meets_an_input_fails():
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run("x + torch.zeros(2)")


def test_the_factories_of_others_stay():
    with forgotten_devices_on_meta():
        assert torch.zeros(2).device.type == "cpu"


def calls(path):
    """Calls of torch's functions in a file, and the function that each stands in."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, (ast.FunctionDef, ast.Module)):
            continue
        stack = list(function.body)
        while stack:
            node = stack.pop()
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                stack += node.body if isinstance(node, ast.ClassDef) else []
                continue
            stack += ast.iter_child_nodes(node)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "torch":
                    yield getattr(function, "name", ""), node


@pytest.mark.parametrize("folder", sorted(path.name for path in PACKAGE.iterdir() if path.is_dir()))
def test_every_factory_names_a_device(folder):
    """Also where no test comes by. Conversions may get a tensor, whose device they keep."""
    missing = []
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        weights = any(item in path.parents for item in WEIGHTS)
        for function, call in calls(path):
            given = {keyword.arg for keyword in call.keywords}
            if (
                call.func.attr in NAMES
                and not given & {"device", "out", None}
                and not (weights and function == "__init__")
            ):
                missing.append(f"{path.name}:{call.lineno} torch.{call.func.attr}")
    assert not missing, f"give device=... : {missing}"
    assert set(CONVERSIONS) & NAMES == {"tensor"}
