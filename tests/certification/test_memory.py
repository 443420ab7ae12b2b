"""Stages that run out of memory get fewer images at once, and say so when one is too much."""

import gc
import weakref

import pytest
import torch

from lirpa_multinorm import BoundedModule, CertifySettings, PerturbationLinf, certify
from lirpa_multinorm.certification import stages
from lirpa_multinorm.certification.memory import MemoryBudget
from lirpa_multinorm.errors import NaNBoundError, NotEnoughMemoryError, UnsupportedModelError
from lirpa_multinorm.host import HostModule
from lirpa_multinorm.utils.memory import is_out_of_memory
from lirpa_multinorm.verifier.relu_network import ReluNetwork

SETTINGS = CertifySettings(methods=["IBP", "CROWN"], attack=None, batch_size=8)


def out_of_memory():
    return RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    )


def caused(error):
    try:
        raise UnsupportedModelError("the host cannot bound it") from error
    except UnsupportedModelError as raised:
        return raised


@pytest.mark.parametrize(
    "error, expected",
    [
        (out_of_memory(), True),
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), True),
        (caused(out_of_memory()), True),
        (RuntimeError("shape mismatch"), False),
        (NaNBoundError("memory"), False),
        (RuntimeError("could not create a primitive"), True),
        (caused(KeyError("x")), False),
    ],
    ids=["cpu", "python", "cuda", "wrapped", "other", "nan", "convolution", "unsupported"],
)
def test_which_errors_are_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_images_are_done_once_each_in_order():
    done, budget = [], MemoryBudget()

    def work(part):
        if len(part) > 2:
            raise out_of_memory()
        done.append(part.tolist())

    budget.run("stage", torch.arange(7), work)
    assert done == [[0], [1], [2], [3], [4], [5], [6]]  # 7, 3, then 1
    budget.run("another", torch.arange(4), lambda part: done.append(part.tolist()))
    assert done[-1] == [0, 1, 2, 3]


def test_other_errors_are_not_tried_again():
    calls = []

    def work(part):
        calls.append(part)
        raise NaNBoundError("NaN")

    with pytest.raises(NaNBoundError):
        MemoryBudget().run("stage", torch.arange(4), work)
    assert len(calls) == 1


def problem():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.rand(20, 4)
    return model, x, model(x).argmax(1), [PerturbationLinf(0.2)]


def cramped(monkeypatch, most):
    """Let CROWN take a few images at once only; returns the sizes that were tried."""
    crown, sizes = stages.STAGES["CROWN"], []

    class Limited(stages.Stage):
        def bound(self, bounded, pairs, deadline):
            sizes.append(len(pairs.image.unique()))
            if sizes[-1] > most:
                raise out_of_memory()
            return crown.bound(bounded, pairs, deadline)

    monkeypatch.setitem(stages.STAGES, "CROWN", Limited("CROWN"))
    return sizes


def test_a_smaller_batch_is_remembered_and_changes_nothing(monkeypatch):
    arguments = problem()
    expected = certify(*arguments, SETTINGS)
    sizes = cramped(monkeypatch, 2)
    result = certify(*arguments, SETTINGS)
    assert result.status == expected.status and result.method == expected.method
    assert torch.allclose(result.margin, expected.margin, atol=1e-5)
    tried = [size for size in sizes if size > 2]
    assert 1 <= len(tried) <= 2 and sizes[: len(tried)] == tried  # only at first
    assert "CROWN" in result.method[0]


def test_a_lack_of_memory_is_not_taken_for_an_unsupported_model(monkeypatch):
    """CROWN falls back to the host's only where its own way does not support the model."""
    methods = []

    def cannot(bounded, regions, C, method, **options):
        methods.append(method)
        raise caused(out_of_memory())

    monkeypatch.setattr(BoundedModule, "compute_region_bounds", cannot)
    with pytest.raises(NotEnoughMemoryError):
        certify(*problem(), CertifySettings(["CROWN"], None, batch_size=1))
    assert set(methods) == {"Sparse-CROWN"}


def test_no_memory_for_one_image_is_an_error_that_says_what_to_do(monkeypatch):
    cramped(monkeypatch, 0)
    with pytest.raises(
        NotEnoughMemoryError, match="CROWN runs out of memory even for one image.*leave it out"
    ):
        certify(*problem(), SETTINGS)


@pytest.mark.parametrize("method", ["CROWN", "Sparse-CROWN"])
def test_what_a_call_without_memory_leaves_is_let_go(monkeypatch, method):
    model, x, _, sets = problem()
    bounded, networks = BoundedModule(model, perturbations=sets), weakref.WeakSet()
    where = (HostModule, "compute_bounds") if method == "CROWN" else (ReluNetwork, "intervals")

    def noted(network, *args, init=ReluNetwork.__init__):
        networks.add(network)
        init(network, *args)

    def cannot(*_, **__):
        raise out_of_memory()

    monkeypatch.setattr(ReluNetwork, "__init__", noted)
    expected = bounded.compute_bounds(x, method=method)[0]
    bounded.compute_bounds(x, method="Sparse-CROWN")
    bounded(x)
    assert len(networks) == 1 and list(bounded.children())
    with monkeypatch.context() as patch:
        patch.setattr(*where, cannot)
        with pytest.raises(RuntimeError, match="can't allocate"):
            bounded.compute_bounds(x, method=method)
    gc.collect()
    assert not networks and not list(bounded.children())
    assert torch.allclose(bounded.compute_bounds(x, method=method)[0], expected)


def test_a_lack_of_memory_while_tracing_is_said_as_it_is(monkeypatch):
    """Neither an unsupported model, nor one that takes a single batch size, nor a wrong input."""
    model, x, _, sets = problem()

    def cannot(*_, **__):
        raise out_of_memory()

    monkeypatch.setattr(model[0], "forward", cannot)
    with pytest.raises(RuntimeError, match="can't allocate"):
        BoundedModule(model, perturbations=sets).compute_bounds(x, method="IBP")
