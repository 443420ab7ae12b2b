"""What surrounds a call changes neither its bounds nor the process."""

import copy
import logging
import math
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    Region,
    certify,
    host,
    pgd,
)
from lirpa_multinorm.errors import InvalidArgumentError, UnsupportedModelError

METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized", "Lipschitz", "Sparse-CROWN", "SDP-CROWN"]
SETS = [PerturbationLinf(0.02), PerturbationL2Box(0.1)]
OPTIONS = {"optimize_bound_args": {"iteration": 3}}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
        .eval()
        .to(dtype)
    )


def inputs(dtype=torch.float32):
    return torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def bound(model, x, method):
    return BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS).compute_bounds(
        x, method=method
    )


def in_inference_mode(model, x, method):
    with torch.inference_mode():
        return bound(model, x.clone(), method)


def in_autocast(model, x, method):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return bound(model, x, method)


def without_gradients(model, x, method):
    with torch.no_grad():
        return bound(model, x, method)


def with_another_default_type(model, x, method):
    torch.set_default_dtype(torch.float64)
    try:
        bounds = bound(model, x, method)
        assert torch.get_default_dtype() == torch.float64
        return bounds
    finally:
        torch.set_default_dtype(torch.float32)


def pickled(model, x, method):
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    bounded(x)
    return pickle.loads(pickle.dumps(bounded)).compute_bounds(x, method=method)


def copied(model, x, method):
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    bounded(x)
    return copy.deepcopy(bounded).compute_bounds(x, method=method)


def frozen(model, x, method):
    return bound(model.requires_grad_(False), x, method)


def replaced(model, x, method):
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    weight = model[4].weight
    model[4].weight = nn.Parameter(2 * weight)
    bounded(x)
    model[4].weight = nn.Parameter(weight.detach().clone())
    return bounded.compute_bounds(x, method=method)


def edited_in_place(model, x, method):
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    weight = model[4].weight.detach().clone()
    model[4].weight.data.mul_(3)
    bounded.compute_bounds(x, method=method)
    model[4].weight.data.copy_(weight)
    return bounded.compute_bounds(x, method=method)


CIRCUMSTANCES = {
    "inference mode": in_inference_mode,
    "autocast": in_autocast,
    "no_grad": without_gradients,
    "default type": with_another_default_type,
    "pickle": pickled,
    "deepcopy": copied,
    "frozen": frozen,
    "parameter replaced": replaced,
    "parameter edited": edited_in_place,
    "channels last": lambda model, x, method: bound(
        model, x.to(memory_format=torch.channels_last), method
    ),
    "not contiguous": lambda model, x, method: bound(
        model, x.transpose(2, 3).contiguous().transpose(2, 3), method
    ),
    "DataParallel": lambda model, x, method: bound(nn.DataParallel(model), x, method),
    "compiled": lambda model, x, method: bound(torch.compile(model, backend="eager"), x, method),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_bounds_are_those_of_a_plain_call(name, method):
    expected = bound(network(), inputs(), method)
    bounds = CIRCUMSTANCES[name](network(), inputs(), method)
    for new, right in zip(bounds, expected):
        assert new.dtype == torch.float32
        torch.testing.assert_close(new.detach(), right.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(UnsupportedModelError, match=r"model\.float\(\)"):
        bound(network(dtype), inputs(dtype), "IBP")


def test_weights_of_inference_mode_are_refused():
    with torch.inference_mode():
        model = network()
    with pytest.raises(UnsupportedModelError, match="inference_mode"):
        bound(model, inputs(), "IBP")


def test_certify_and_pgd_in_inference_mode():
    model, x = network(), inputs()
    y = model(x).argmax(1)
    settings = CertifySettings(["IBP", "CROWN", "SDP-CROWN", "BaB"], time_limit=5)
    expected = certify(model, x, y, SETS, settings)
    points = pgd(model, x, y, SETS, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result = certify(model, x.clone(), y.clone(), SETS, settings)
        attacked = pgd(
            model, x.clone(), y.clone(), SETS, generator=torch.Generator().manual_seed(0)
        )
    assert result.status == expected.status and not result.errors
    assert all(torch.equal(new, right) for new, right in zip(attacked, points))


def test_branch_and_bound_in_inference_mode():
    model, x, C = network(), inputs()[:1], torch.tensor([[1.0, -1.0, 0.0]])
    expected = BoundedModule(model).branch_and_bound(Region(x, SETS[1]), C)
    with torch.inference_mode():
        lower = BoundedModule(model).branch_and_bound(Region(x.clone(), SETS[1]), C.clone())
    torch.testing.assert_close(lower, expected)


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
    modules = {
        dtype: BoundedModule(models[dtype], perturbations=SETS, bound_opts=OPTIONS)
        for dtype in models
    }
    before, faults = (sys.stdout, torch.get_default_dtype(), torch.is_grad_enabled()), []

    def work(dtype, method):
        try:
            for _ in range(3):
                module = (
                    modules[dtype]
                    if shared
                    else BoundedModule(models[dtype], perturbations=SETS, bound_opts=OPTIONS)
                )
                bounds = module.compute_bounds(x[dtype], method=method)
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
    assert not capsys.readouterr().out and not [
        one for one in caplog.records if one.levelno >= logging.ERROR
    ]


def test_a_tied_layer_is_bounded_as_what_it_is():
    layer = nn.Linear(3, 3)
    model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.rand(2, 3)
    bounds = bound(model, x, "CROWN")
    expected = bound(nn.Sequential(layer, nn.ReLU(), copy.deepcopy(layer)), x, "CROWN")
    assert all(torch.allclose(new, right, atol=1e-6) for new, right in zip(bounds, expected))


def test_a_perturbed_input_keeps_its_set_in_inference_mode():
    model, x = network(), inputs()
    with torch.inference_mode():
        perturbed = host.BoundedTensor(x.clone(), host.PerturbationLpNorm(norm=math.inf, eps=0.02))
        lower, upper = BoundedModule(model, torch.empty_like(x)).compute_bounds(
            (perturbed,), method="IBP"
        )
    assert float((upper - lower).min()) > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_an_input_made_in_inference_mode_is_bounded_outside_of_it(method):
    with torch.inference_mode():
        x = inputs().clone()
    for new, right in zip(bound(network(), x, method), bound(network(), inputs(), method)):
        torch.testing.assert_close(new.detach(), right.detach())


@pytest.mark.filterwarnings("ignore:model:UserWarning")
@pytest.mark.parametrize("method", ["IBP", "CROWN"])
def test_bounds_under_a_flop_counter(method):
    """The old host fails in any TorchDispatchMode; our engine does not."""
    from torch.utils.flop_counter import FlopCounterMode

    expected = bound(network(), inputs(), method)
    with FlopCounterMode(display=False):
        found = bound(network(), inputs(), method)
    assert all(torch.allclose(one, other, atol=0.2) for one, other in zip(expected, found))


class OneInput(nn.Module):
    """Takes no other batch than one."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.reshape(1, 16))))


@pytest.mark.parametrize(
    "method", ["IBP", "CROWN-IBP", "CROWN", "Sparse-CROWN", "SDP-CROWN", "Lipschitz"]
)
@pytest.mark.parametrize("with_specification", [False, True])
def test_several_sets_of_a_model_of_single_inputs(method, with_specification):
    torch.manual_seed(0)
    model, sets, x = (
        OneInput().eval(),
        [PerturbationLinf(0.05), PerturbationL2Box(0.1)],
        torch.rand(1, 1, 4, 4),
    )
    C = torch.tensor([[[1.0, -1.0, 0.0]]]) if with_specification else None
    both = BoundedModule(model, perturbations=sets).compute_norm_bounds(x, C=C, method=method)
    for one, bounds in zip(sets, both):
        alone = BoundedModule(model, perturbations=[one]).compute_bounds(x, C=C, method=method)
        close = 0.05 if method == "SDP-CROWN" else 1e-5  # an optimiser's path depends on its batch
        assert all(torch.allclose(end, other, atol=close) for end, other in zip(bounds, alone))


def test_inputs_without_a_common_batch_are_named():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    x, y = host.BoundedTensor(torch.rand(2, 4), PerturbationLinf(0.1)), torch.rand(4)
    with pytest.raises(InvalidArgumentError, match=r"shapes \(2, 4\), \(4,\) are no batch"):
        BoundedModule(Two()).compute_bounds((x, y), method="IBP")
