"""What float32 products are rounded to.

Nothing less while bounding, and as it was found afterwards.
"""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf, host
from lirpa_multinorm.losses import build_loss
from lirpa_multinorm.utils.modes import tensor_float_32
from tests.processes import FORKS, Process

backends = torch.backends
pytestmark = pytest.mark.skipif(not FORKS, reason="starting anew takes too long")
new_names = pytest.mark.skipif(
    not hasattr(backends, "fp32_precision"), reason="torch has the old names only"
)


def precisions():
    """What every switch shows, or that torch refuses to say it."""
    shown = []
    for owner in (
        backends,
        backends.cuda.matmul,
        backends.cudnn,
        *(
            getattr(parent, name)
            for parent in (backends.cudnn, backends.mkldnn)
            for name in ("matmul", "conv", "rnn")
            if hasattr(parent, name)
        ),
    ):
        shown.append(getattr(owner, "fp32_precision", None))
    for read in (
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
    ):
        try:
            shown.append(read())
        except RuntimeError:
            shown.append("mixed")
    return shown


def code_of_a_process(function, *arguments):
    """The exit code of a child.

    Torch has no way back to the switches' first state, so they are changed there only.
    """
    code, errors = Process(function, *arguments).ended()
    assert errors == ""
    return code


def bounds_and_losses_as_before(name):
    model, x, y = (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        torch.rand(2, 3),
        torch.tensor([0, 1]),
    )
    sets = [PerturbationLinf(0.1), PerturbationL2Box(0.1)]
    expected = BoundedModule(model, perturbations=sets).compute_bounds(x, method="CROWN")
    {**CHANGES, **NEW_CHANGES}[name]()
    before = precisions()
    bounded = BoundedModule(model, perturbations=sets)
    for method in ("IBP", "CROWN", "Sparse-CROWN"):
        lower, _ = bounded.compute_bounds(x, method=method)
        assert bool(torch.isfinite(lower).all())
    assert all(map(torch.allclose, bounded.compute_bounds(x, method="CROWN"), expected))
    build_loss("max", sets)(bounded.train(), x, y).value.backward()
    assert precisions() == before
    if hasattr(backends, "fp32_precision"):
        for allowed, shown in ((False, "ieee"), (True, "tf32")):
            with tensor_float_32(allowed):
                assert set(precisions()[:-3]) == {shown}
        assert precisions() == before


def put(owner, name, value):
    return lambda: setattr(owner, name, value)


CHANGES = {
    "nothing": lambda: None,
    "old name, products": put(backends.cuda.matmul, "allow_tf32", True),
    "old name, convolutions": put(backends.cudnn, "allow_tf32", False),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
}
NEW_CHANGES = {
    "products": put(getattr(backends.cuda, "matmul", None), "fp32_precision", "tf32"),
    "everything": put(backends, "fp32_precision", "tf32"),
    "nothing less": put(backends, "fp32_precision", "ieee"),
    "convolutions": lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
    "the CPU's": lambda: setattr(backends.mkldnn, "fp32_precision", "bf16"),
    "the CPU's products": lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "old and new": lambda: (
        put(backends.cuda.matmul, "allow_tf32", True)(),
        put(backends.cuda.matmul, "fp32_precision", "ieee")(),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_switches_by_old_names_are_kept(name):
    assert code_of_a_process(bounds_and_losses_as_before, name) == 0


@new_names
@pytest.mark.parametrize("name", NEW_CHANGES)
def test_switches_by_new_names_are_kept(name):
    assert code_of_a_process(bounds_and_losses_as_before, name) == 0


def parts_follow_the_whole_again():
    with tensor_float_32(False):
        pass
    backends.fp32_precision = "ieee"
    assert backends.cudnn.conv.fp32_precision == "ieee"
    backends.fp32_precision = "tf32"
    assert backends.cuda.matmul.fp32_precision == backends.cudnn.conv.fp32_precision == "tf32"


@new_names
def test_what_follows_another_switch_still_does():
    assert code_of_a_process(parts_follow_the_whole_again) == 0


def test_the_host_runs_with_full_precision(monkeypatch):
    seen, original = [], host.HostModule.compute_bounds

    def recorded(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        return original(*args, **kwargs)

    monkeypatch.setattr(host.HostModule, "compute_bounds", recorded)
    bounded = BoundedModule(nn.Linear(3, 2), perturbations=[PerturbationL2Box(0.1)])
    bounded.compute_bounds(torch.rand(1, 3), method="CROWN")
    assert seen and set(seen) == {"highest"}


def test_switches_are_put_back_after_an_error():
    before = precisions()
    with pytest.raises(ZeroDivisionError), tensor_float_32(False):
        raise ZeroDivisionError
    assert precisions() == before
