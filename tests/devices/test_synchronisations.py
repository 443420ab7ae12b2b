"""A training step waits for its device twice at most, and an attack not at each of its steps."""

import contextlib
import warnings

import pytest
import torch

from lirpa_multinorm import build_loss
from lirpa_multinorm.attacks import AttackSettings, pgd
from lirpa_multinorm.losses import LOSSES
from lirpa_multinorm.training import Schedule, TrainConfig
from lirpa_multinorm.training.step import TrainingStep
from tests.devices.cases import SETS, batch, network
from tests.devices.synchronisations import Synchronisations

#: On the CPU alone the search for a multiplier looks whether it is done; the newer host's backward
#: pass looks whether constants are infinite, in a line of no consequence to us.
NOT_OURS = ("support.py", "concretize_bounds.py")


@contextlib.contextmanager
def counted(device):
    """The places that wait for a device, as they come up."""
    places: list[str] = []
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode("default")
        result = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
        places += _ours(result)
        return
    with Synchronisations() as counting:
        yield places
    places += _ours(counting.places.elements())


def _ours(places):
    """The places but for those that are not ours."""
    return [place for place in places if not any(file in place for file in NOT_OURS)]


@pytest.fixture
def device(pytestconfig):
    return torch.device(pytestconfig.getoption("--device"))


@pytest.mark.device
@pytest.mark.parametrize("regularizer", [0.0, 0.5], ids=["plain", "regularised"])
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "linf_dist"])
def test_a_training_step_waits_twice_at_most(loss, regularizer, device):
    model, (x, y) = network(device, normed=True), batch(device, 8)
    config = TrainConfig(loss=loss, batch_size=8, schedule=Schedule(0, 1), regularizer=regularizer)
    step = TrainingStep(model, build_loss(loss, SETS[:2]), SETS[:2], config)
    step.start_epoch(0)
    for _ in range(2):  # the first steps trace, and compare graph and model
        step(x, y, 0.5)
    with counted(device) as places:
        step(x, y, 0.5)
    assert len(places) <= 2, places


@pytest.mark.device
@pytest.mark.parametrize("steps", [2, 12])
def test_an_attack_waits_twice_however_many_steps_it_makes(steps, device):
    model, (x, y) = network(device), batch(device)
    with counted(device) as places:
        pgd(model, x, y, SETS, AttackSettings(steps=steps, restarts=2))
    assert len(places) <= 2, places  # inputs and labels


def test_what_waits_is_counted():
    x, mask = torch.ones(2), torch.tensor([True, False])
    with Synchronisations() as counting:
        _ = float(x.sum()), bool(mask.any()), x.tolist(), x.cpu(), mask.nonzero(), x[mask]
        x[mask], _ = 0.0, torch.where(mask, x, 0.0)
    assert counting.total == 6, counting.places
