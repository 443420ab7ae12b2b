"""What each process of tests/distributed/test_distributed.py does.

The one-process runs use the same settings.
"""

import dataclasses
import signal

import torch

from lirpa_multinorm import AttackSettings, CertifySettings
from lirpa_multinorm.errors import LirpaMultinormError
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.training import ModelSpec, Projection, Schedule, TrainConfig, train
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.utils import distributed
from tests.toy import SETS, data

SPEC = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2})  # with BatchNorm
CONFIG = TrainConfig(
    epochs=3,
    batch_size=16,
    learning_rate=0.01,
    milestones=(2,),
    schedule=Schedule(0, 1, 0.5, 0.0),
    l1=1e-4,
)
FAST = {"attack": {"steps": 2}}
#: All of it in float64: Adam would turn float32's rounding of a gradient that is zero into full
#: steps.
RUNS = {
    "joint": {"loss": "joint", "loss_options": FAST, "regularizer": 0.5, "initialization": "shi"},
    "max_ball": {
        "loss": "max",
        "loss_options": {"ratio_2": 0.5, "region_2": "ball"},
        "clip_norm": 1.0,
    },
    "random": {"loss": "random", "loss_options": FAST, "augment": "cifar"},
    "cure": {
        "loss": "cure",
        "loss_options": {"eta": 0.5, "ratio_2": 0.5, "region_2": "ball", **FAST},
        "projection": Projection(0.5, "mixed"),
        "average_from": 1,
        "precise_bn": True,
    },
    "accumulate": {
        "loss": "joint",
        "loss_options": FAST,
        "projection": Projection(0.5, "certified", "copy", True),
    },
    "natural": {"loss": "natural"},
    "lipschitz": {"loss": "joint", "loss_options": {"region_2": "lipschitz", **FAST}},
    "crown_ibp": {"loss": "crown_ibp", "loss_options": {"crown_share_2": 0.5}},
    "taps": {
        "loss": "random",
        "loss_options": {
            "bounding_inf": "TAPS",
            "bounding_2": "TAPS",
            "ratio_2": 0.5,
            "region_2": "ball",
            "taps_2": {"steps": 3, "restarts": 2},
            **FAST,
        },
    },
    "mixed": {"loss": "exp_ibp", "loss_options": {"alpha": 0.5, **FAST}},
}


def go(name, output=None, resume=False, **changes):
    images = data()
    images = dataclasses.replace(images, x_train=images.x_train.double())
    config = dataclasses.replace(CONFIG, **RUNS[name], **changes)
    return train(SPEC, images, SETS, config, output, progress=False, resume=resume)


def stopped(folder):
    """The last process gets a signal in its third step; all go on afterwards."""
    original, steps, words = TrainingStep.__call__, [], None

    def step(*args):
        steps.append(1)
        if len(steps) == 3 and distributed.rank() == 1:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    TrainingStep.__call__ = step
    try:
        go("natural", folder)
    except KeyboardInterrupt as interruption:
        words = str(interruption)
    finally:
        TrainingStep.__call__ = original
    return {
        "steps": len(steps),
        "words": words,
        "model": go("natural", folder, resume=True).state_dict(),
    }


def compare(output):
    """A table whose second row starts from the first row's network.

    Only one process has written that network.
    """
    images = data()
    images = dataclasses.replace(
        images, x_train=images.x_train.double(), x_test=images.x_test.double()
    )
    certification = CertifySettings(methods=("IBP",), attack=AttackSettings(steps=3))
    rows = {
        "SABR l_inf": {"loss": "sabr"},
        "Finetune": {"loss": "joint", "initial": "SABR l_inf", "share": 0.7},
    }
    return Experiment(images, SPEC, SETS, CONFIG, certification).run(output, rows, progress=False)


def complaint(function):
    try:
        function()
    except LirpaMultinormError as error:
        return type(error).__name__, str(error)
    return None


def differentiated():
    """The gradient of a product of sums over all processes, in this process's summands."""
    rank = distributed.rank()
    mine = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    weight = torch.nn.Parameter(torch.tensor(3.0))
    total = distributed.all_sum(weight * mine.sum()) ** 2
    total.backward()
    distributed.average_gradients([weight])
    return {
        "total": total.detach(),
        "own": mine.grad / distributed.world_size(),
        "weight": weight.grad,
        "mean": distributed.mean(torch.arange(1.0 + 2 * rank)).detach(),
    }


def drawn():
    source = distributed.SharedGenerator(5)
    return [source.rand((2, 3)), source.randn((2,)), source.rand((1, 1), dtype=torch.float64)]


def main(folder):
    torch.set_default_dtype(torch.float64)
    with distributed.process_group(timeout=60):
        rank = distributed.rank()
        loaded = {
            "models": {name: go(name, folder / name).state_dict() for name in RUNS},
            "rows": len(compare(folder / "table")),
            "differentiated": differentiated(),
            "drawn": drawn(),
            "indivisible": complaint(lambda: go("joint", batch_size=15)),
            "refused": complaint(lambda: go("joint", folder / "joint")),
            "stopped": stopped(folder / "stopped"),
            "different": complaint(lambda: go("joint", seed=rank)),
        }
    torch.save(loaded, folder / f"rank_{rank}.pt")
