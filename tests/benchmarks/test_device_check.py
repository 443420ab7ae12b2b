"""The check of a device: refusals that say what would do, and what it calls a problem."""

import pytest
import torch

from benchmarks.common import find_device
from benchmarks.device_check import ATTACKS, certified, fitting, problems, tasks, trained
from benchmarks.run import Config, Places
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import LOSSES

CPU = torch.device("cpu")
SMALL = Config.read("device_check_small").settings


@pytest.mark.parametrize("name", ["cuda:97", "gpu", "meta:x"])
def test_a_device_that_does_not_exist_is_refused_with_those_that_do(name):
    if name == "cuda:97" and not torch.cuda.is_available():
        expected = "torch finds no GPU on this machine; use 'cpu'"
    else:
        expected = "use 'cpu'"
    with pytest.raises(InvalidArgumentError, match=expected) as caught:
        find_device(name)
    assert f"device={name!r}" in str(caught.value)


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    asked = []

    def measure(size):
        asked.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"seconds": 1.0}

    row = fitting(12, CPU, measure)
    assert asked == [12, 6, 3]
    assert row["does not fit"] == 12 and row["batch"] == 3


def test_a_device_without_room_for_an_image_is_named():
    def measure(size):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InvalidArgumentError, match="device='cpu' has no memory .* --small"):
        fitting(4, CPU, measure)


def test_every_loss_and_attack_is_timed_at_every_batch():
    keys = tasks({**SMALL, "device": "cpu"}, Places())
    for batch in SMALL["batches"]:
        names = {*LOSSES, *(f"joint, attack in {item}" for item in ATTACKS)}
        for name in names - {"linf_dist"}:  # of distance networks alone
            assert f"training, batch {batch}: {name}" in keys
    assert set(Config.read("device_check").settings["batches"]) == {128, 256}


def test_what_there_is_no_time_for_is_said_and_not_run():
    keys = tasks({**SMALL, "device": "cpu", "seconds": 0}, Places())
    assert keys["certification"]() == {"left out": "the 0 seconds of the check were over"}
    assert "environment" in keys["device"]()


def test_steps_and_certification_are_timed():
    row = trained("joint", ATTACKS["float32"], SMALL, CPU, 2)
    assert row["seconds"] > 0
    assert certified(SMALL, CPU, 2)["images per second"] > 0


def test_failed_tests_and_other_bounds_are_problems():
    differences = {"a": 1e-6, "b": 0.1, "c": float("nan")}
    rows = [
        {"key": "tests", "failed": ["FAILED one"]},
        {"key": "bounds", "largest difference to the CPU": differences},
    ]
    assert problems(rows) == [
        "FAILED one",
        "b differ from those on the CPU by 0.1",
        "c differ from those on the CPU by nan",
    ]
