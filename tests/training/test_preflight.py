"""Everything that is known before the first step is said before it, for every row."""

import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch

import lirpa_multinorm.training.disk_space as disk_space
import lirpa_multinorm.training.preflight as preflight
from lirpa_multinorm import BoundedModule, CertifySettings
from lirpa_multinorm.errors import CheckpointError, InvalidArgumentError, OutputFolderError
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.experiments.rows import ROWS
from lirpa_multinorm.losses import LOSSES
from lirpa_multinorm.training import ModelSpec, Projection, Schedule, train
from lirpa_multinorm.training.step import TrainingStep
from tests.toy import CONFIG, SETS, SPEC, data

WHOLE = dataclasses.replace(CONFIG, partial_radius=False)
BATCH_NORM = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2})
DISTANCES = ModelSpec("linf_dist_mlp", (1, 4, 4), 3, options={"hidden": [6]})


@pytest.fixture
def no_step(monkeypatch):
    monkeypatch.setattr(TrainingStep, "__call__", lambda *_: pytest.fail("a step was taken"))


def check(spec=SPEC, sets=SETS, initial=None, config=WHOLE, **changes):
    return preflight.check_run(
        spec, data(), sets, dataclasses.replace(config, **changes), initial=initial
    )


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "unknown loss": ({"loss": "maxx"}, "'maxx' is unknown"),
    "unknown option": ({"loss_options": {"ratio_3": 1}}, "ratio_3"),
    "option of another loss": (
        {"loss": "sabr", "loss_options": {"weights": [0.5, 0.5]}},
        "weights",
    ),
    "weights that do not add up": ({"loss_options": {"weights": [0.2, 0.2]}}, "weights"),
    "weights of another number": ({"loss_options": {"weights": [1.0]}}, "weights"),
    "option of another type": (
        {"loss": "sabr", "loss_options": {"ratio_inf": "a"}},
        "ratio='a' must be a number",
    ),
    "attack of another type": (
        {"loss": "sabr", "loss_options": {"attack": {"steps": "2"}}},
        "'steps': '2'",
    ),
    "no set of the norm": ({"loss": "max", "loss_options": {"region_1": "box"}}, "region_1"),
    "batch": ({"batch_size": 41}, "batch_size=41 is larger than the 40"),
    "partial radius": (
        {"schedule": Schedule(1, 20)},
        r"ends at 0\.\d+ % of the radius.*partial_radius",
    ),
    "no radius": ({"schedule": Schedule(5, 1)}, "ends at 0 % of the radius"),
    "projection": (
        {"projection": Projection(), "schedule": Schedule(1, 2)},
        "projection: .*never start",
    ),
    "augmentation": ({"augment": "tinyimagenet"}, "choose another augmentation"),
}


@pytest.mark.parametrize("changes, words", REFUSED.values(), ids=REFUSED)
def test_a_run_that_cannot_be_what_it_says(changes, words, tmp_path, no_step):
    with pytest.raises(InvalidArgumentError, match=words):
        train(
            SPEC,
            data(),
            SETS,
            dataclasses.replace(WHOLE, **changes),
            tmp_path / "run",
            progress=False,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": Schedule(1, 20), "partial_radius": True},
        {"loss": "natural", "schedule": Schedule(1, 20)},
        {"schedule": Schedule("50%", "50%")},
        {"schedule": Schedule(0, 0)},
        {"projection": Projection(), "schedule": Schedule(0, 2)},
        {"projection": {"beta": 0.5}, "schedule": {"anneal_epochs": 1}},
    ],
    ids=str,
)
def test_runs_that_may_start(changes):
    assert check(**changes).name == "toy"


def test_a_milestone_that_is_never_reached_is_a_warning():
    with pytest.warns(UserWarning, match="milestones: 3, 50 never reached in 3 epochs"):
        check(milestones=(1, 3, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(milestones=(1, 0.9))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"spec": "mlp"}, "spec='mlp'"),
        ({"sets": []}, "perturbations"),
        ({"sets": [0.1]}, "perturbations"),
    ],
    ids=str,
)
def test_other_things_than_specs_and_sets(arguments, words):
    with pytest.raises(InvalidArgumentError, match=words):
        check(**arguments)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 1.5], ids=str)
def test_a_device_that_is_not_there(device):
    with pytest.raises(InvalidArgumentError, match="device="):
        train(SPEC, data(), SETS, WHOLE, device=device, progress=False)


def test_initial_weights_are_read_first(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        check(initial=tmp_path / "weights.pt")


# --- rows of a comparison -------------------------------------------------------------------------


def compare(tmp_path, rows, **changes):
    made = Experiment(
        data(),
        SPEC,
        SETS,
        dataclasses.replace(WHOLE, **changes),
        CertifySettings(("IBP",), attack=None),
    )
    return made.run(tmp_path / "run", rows, progress=False)


@pytest.mark.parametrize(
    "row, words",
    [
        ({"loss": "joint", "loss_options": {"weights": [0.2, 0.2]}}, "weights"),
        ({"loss": "jiont"}, "jiont"),
        ({"loss": "max", "epochs": 1}, "of the radius"),
        ({"loss": "max", "projection": {"betta": 1}}, "betta"),
    ],
    ids=str,
)
def test_a_fault_of_the_last_row_is_found_before_the_first_is_trained(
    row, words, tmp_path, no_step
):
    with pytest.raises(InvalidArgumentError, match=words):
        compare(tmp_path, {"natural": ROWS["natural"], "Max": ROWS["Max"], "last": row})
    assert not (tmp_path / "run").exists()


def test_hand_made_labels_reach_the_certification(tmp_path):
    images = dataclasses.replace(
        data(), y_train=data().y_train.int(), y_test=data().y_test.numpy()[:, None]
    )
    with pytest.warns(
        UserWarning, match="converted y_train from int32 to int64, y_test from a numpy array"
    ):
        made = Experiment(images, SPEC, SETS, CONFIG, CertifySettings(("IBP",), attack=None))
    assert made.run(tmp_path, {"natural": ROWS["natural"]}, progress=False)[0]["n"] == 12


# --- it leaves no trace ---------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_no_generator_is_moved_and_every_loss_passes(loss):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    options = {"regularizer": 0.5, "initialization": "shi"}
    if loss == "linf_dist":  # of networks without ReLUs
        check(DISTANCES, loss=loss, augment="cifar")
    else:
        check(BATCH_NORM, loss=loss, augment="cifar", **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_crown_ibp_is_tried_where_it_has_a_share(monkeypatch):
    methods, original = [], BoundedModule.compute_region_bounds
    monkeypatch.setattr(
        BoundedModule,
        "compute_region_bounds",
        lambda self, regions, C, method, **options: (
            methods.append(method) or original(self, regions, C, method, **options)
        ),
    )
    check(loss="crown_ibp")
    assert methods == ["CROWN-IBP", "IBP", "IBP"]  # half the radius, and all of it
    check(loss="ibp")
    assert methods[3:] == ["IBP"]


def test_a_batch_of_one_is_no_fault():
    assert check(batch_size=1).name == data().name


# --- the disk -------------------------------------------------------------------------------------


def test_a_full_disk_is_found_first(tmp_path, monkeypatch, no_step):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for start in (
        lambda: train(SPEC, data(), SETS, WHOLE, tmp_path / "deep" / "run", progress=False),
        lambda: compare(tmp_path, {"Max": ROWS["Max"]}),
    ):
        with pytest.raises(OutputFolderError, match="Free some space"):
            start()
    assert not list(tmp_path.iterdir())


def test_room_for_every_run_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * 20))
    disk_space.check_space(tmp_path, 100, runs=8)
    with pytest.raises(OutputFolderError):
        disk_space.check_space(tmp_path, 100, runs=9)
    assert disk_space.weight_bytes(SPEC) == 4 * (16 * 8 + 8 + 8 * 3 + 3)
