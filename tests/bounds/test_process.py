"""Bounding beside other threads, inside other modules, and what a process sees of it."""

import logging
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule
from lirpa_multinorm.errors import UnsupportedModelError
from tests.bounds.plain_bounds import SETS, bound, inputs, module, network


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shared", [True, False])
def test_threads(shared):
    models = {dtype: network(dtype) for dtype in (torch.float32, torch.float64)}
    x = {dtype: inputs(dtype) for dtype in models}  # made here: the default type is the process's
    expected = {
        (dtype, method): bound(models[dtype], x[dtype], method)
        for dtype in models
        for method in ("IBP", "CROWN", "CROWN-Optimized")
    }
    modules = {dtype: module(model) for dtype, model in models.items()}
    before, faults = (sys.stdout, torch.get_default_dtype(), torch.is_grad_enabled()), []

    def work(dtype, method):
        try:
            for _ in range(3):
                bounded = modules[dtype] if shared else module(models[dtype])
                bounds = bounded.compute_bounds(x[dtype], method=method)
                faults.extend(
                    method
                    for new, right in zip(bounds, expected[dtype, method])
                    if not torch.allclose(new, right, atol=1e-5)
                )
        except Exception as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=work, args=key) for key in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert (sys.stdout, torch.get_default_dtype(), torch.is_grad_enabled()) == before


class Parent(nn.Module):
    """A module with a bounded part."""

    def __init__(self):
        super().__init__()
        self.head, self.net = nn.Linear(2, 2), BoundedModule(network(), perturbations=SETS)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [lambda parent: parent, nn.DataParallel, nn.Sequential, torch.optim.swa_utils.AveragedModel],
)
def test_state_dict_of_a_parent(wrap, traced):
    source, target = wrap(Parent()), wrap(Parent())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    if traced:
        for module in target.modules():
            if isinstance(module, BoundedModule):
                module(inputs())
    entries = source.state_dict()
    assert any(key.endswith("net.4.weight") for key in entries)
    assert str(target.load_state_dict(entries)) == "<All keys matched successfully>"
    assert all(torch.equal(value, entries[key]) for key, value in target.state_dict().items())
    with pytest.raises(RuntimeError, match="net.4.weight"):
        target.load_state_dict(
            {key: value for key, value in entries.items() if not key.endswith("net.4.weight")}
        )
    with pytest.raises(RuntimeError, match="net.other"):
        target.load_state_dict(
            {
                **entries,
                next(key for key in entries if "net.0" in key).replace(
                    "0.weight", "other"
                ): torch.ones(1),
            }
        )


def test_import_leaves_the_process_alone(tmp_path):
    code = (
        "import logging, warnings, lirpa_multinorm\n"
        f"logging.basicConfig(filename={str(tmp_path / 'run.log')!r}, level=20)\n"
        "logging.getLogger('mine').info('hello')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        ran.returncode == 0
        and not ran.stdout
        and "Warning" not in ran.stderr
        and "CUDA" not in ran.stderr
    )
    assert "hello" in (tmp_path / "run.log").read_text()


class Bessel(nn.Module):
    """An operator that no host knows."""

    def forward(self, x):
        return torch.special.i0(x)


def test_an_unsupported_operator_prints_nothing(capsys, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(UnsupportedModelError):
        bound(Bessel(), torch.rand(1, 3), "IBP")
    assert not capsys.readouterr().out
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
