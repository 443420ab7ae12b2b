"""The comparison with CTRAIN: its tasks, the loader that it is given, and our side of it.

Nothing of CTRAIN is needed.
"""

import pytest
import torch

from benchmarks import peers
from benchmarks.run import Config, Places, names, run
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import build_loss
from lirpa_multinorm.perturbations import PerturbationLinf
from lirpa_multinorm.training import TrainConfig

OURS = [name for name in names() if Config.read(name).benchmark == "peers"]
SETTINGS = {
    "network": "cnn_small",
    "in_shape": [1, 8, 8],
    "data": "digits",
    "n_train": 64,
    "n_test": 5,
    "epochs": 1,
    "batch": 32,
    "eps": 0.05,
    "learning_rate": 1e-3,
    "seed": 0,
}


@pytest.mark.parametrize("name", OURS)
def test_both_sides_of_a_configuration_can_be_trained(name):
    settings = Config.read(name).settings
    assert list(peers.tasks(settings, Places())) == list(settings["runs"])
    for what in settings["runs"].values():
        if "ctrain" in what:
            assert what["ctrain"] in peers.DEFAULTS and {"warm_up", "ramp_up", "milestones"} <= set(
                what["options"]
            )
        else:
            config = TrainConfig(**{"epochs": settings["epochs"], **what["train"]})
            assert (
                build_loss(config.loss, [PerturbationLinf(settings["eps"])], **config.loss_options)
                is not None
            )


def test_a_configuration_without_ctrain_says_so(tmp_path):
    with pytest.raises(InvalidArgumentError, match="needs --ctrain"):
        run(Config.read(OURS[0]), Places(), tmp_path)


def test_the_loader_gives_whole_batches_of_all_images_in_other_orders():
    x = torch.arange(70.0).view(70, 1, 1, 1)
    loader = peers._Loader(x, x.flatten().long(), 32, seed=0)
    first, second = (list(loader) for _ in range(2))
    assert len(loader) == 2 and [len(y) for _, y in first] == [32, 32]
    assert all(torch.equal(images.flatten().long(), y) for images, y in first)
    assert len(torch.cat([y for _, y in first]).unique()) == 64
    assert not torch.equal(first[0][1], second[0][1])


def test_our_side_is_trained_and_certified():
    what = {
        "train": {
            "loss": "sabr",
            "loss_options": {"ratio_inf": 0.4},
            "schedule": {"natural_epochs": 0, "anneal_epochs": 0.5},
        }
    }
    row = {"key": "ours", **peers.tasks({**SETTINGS, "runs": {"ours": what}}, Places())["ours"]()}
    assert (
        row["n"] == 5
        and 0 <= row["certified %"] <= row["clean %"] <= 100
        and row["CPU seconds"] > 0
    )
    ((line,),) = peers.tables([row]).values()
    assert line["training"] == "ours" and line["certified %"] == row["certified %"]
