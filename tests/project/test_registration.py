"""register() and unregister()."""

import auto_LiRPA
import auto_LiRPA.perturbations
import pytest

import lirpa_multinorm
from lirpa_multinorm import host
from lirpa_multinorm.errors import InvalidArgumentError

NAMES = ["PerturbationLpBox", "PerturbationLinf", "PerturbationL2Box", "PerturbationL1Box"]


@pytest.fixture(autouse=True)
def undone():
    yield
    lirpa_multinorm.unregister()


def state():
    return {
        (module.__name__, name): getattr(module, name, None)
        for module in (auto_LiRPA, auto_LiRPA.perturbations)
        for name in NAMES + ["BoundedModule"]
    }


def test_import_registers_nothing():
    assert auto_LiRPA.BoundedModule is host.HostModule
    assert not any(hasattr(auto_LiRPA, name) for name in NAMES)


def test_register_is_idempotent_and_undone():
    before = state()
    lirpa_multinorm.register()
    once = state()
    lirpa_multinorm.register()
    assert state() == once
    assert auto_LiRPA.BoundedModule is lirpa_multinorm.BoundedModule
    assert all(
        getattr(auto_LiRPA.perturbations, name) is getattr(lirpa_multinorm, name) for name in NAMES
    )
    assert issubclass(auto_LiRPA.BoundedModule, host.HostModule)
    lirpa_multinorm.unregister()
    assert state() == before
    lirpa_multinorm.unregister()
    assert state() == before


def test_a_stranger_is_kept(monkeypatch):
    stranger = type("PerturbationL2Box", (), {})
    monkeypatch.setattr(auto_LiRPA, "PerturbationL2Box", stranger, raising=False)
    with pytest.raises(InvalidArgumentError, match="auto_LiRPA.PerturbationL2Box.*force"):
        lirpa_multinorm.register()
    assert auto_LiRPA.PerturbationL2Box is stranger
    assert auto_LiRPA.BoundedModule is host.HostModule
    lirpa_multinorm.register(force=True)
    assert auto_LiRPA.PerturbationL2Box is lirpa_multinorm.PerturbationL2Box
    lirpa_multinorm.unregister()
    assert auto_LiRPA.PerturbationL2Box is stranger
