"""How much of published networks is certified: this package's cascade beside published figures.

    python -m benchmarks.run certified --reference FOLDER

FOLDER holds the weights (mnist_convsmall.pth and cifar10_cnn_c.pth of the SDP-CROWN repository,
mnist_cnn_a_adv.pth and cifar_cnn_a_mix.pth of alpha-beta-CROWN's) and in sdp200/mnist and
sdp200/cifar the 200 images and labels that its paper verifies (X_sdp.npy, NHWC in [0, 1];
y_sdp.npy); none of them is part of this project.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
from torch import nn

from lirpa_multinorm import CertifySettings, PerturbationLpBox, certify
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.certification import CERTIFIED, METHODS
from lirpa_multinorm.models import Normalize

from .run import Places, Task

BOUNDS = tuple(method for method in METHODS if method != "BaB")
ATTACKS = (AttackSettings(steps=100, restarts=5), AttackSettings(steps=100, restarts=2, loss="ce"))
MEAN = (125.3 / 255, 123 / 255, 113.9 / 255)


def _cnn_a(channels: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def _cnn_c() -> nn.Sequential:
    return nn.Sequential(
        Normalize(MEAN, (0.225,) * 3),
        nn.Conv2d(3, 8, 4, 2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Published(NamedTuple):
    """A network, its images, norm and radius, and the papers' verified % of the 200 images."""

    make: Callable[[], nn.Sequential]
    images: str
    norm: float
    eps: float
    verified: dict[str, float]


#: The l_2 rows are Table 1 of SDP-CROWN (Chiu et al., ICML 2025), the l_inf rows Table 4 of
#: Clip-and-Verify.
NETWORKS = {
    "mnist_convsmall": Published(
        lambda: _cnn_a(1, 1568),
        "mnist",
        2,
        0.3,
        {
            "alpha-CROWN": 0.0,
            "beta-CROWN": 16.0,
            "LipNaive": 77.5,
            "SDP-CROWN": 81.5,
            "upper bound": 84.5,
        },
    ),
    "cifar10_cnn_c": Published(
        _cnn_c,
        "cifar",
        2,
        24 / 255,
        {
            "alpha-CROWN": 24.5,
            "beta-CROWN": 35.5,
            "LipNaive": 36.5,
            "SDP-CROWN": 42.5,
            "upper bound": 47.0,
        },
    ),
    "mnist_cnn_a_adv": Published(
        lambda: _cnn_a(1, 1568),
        "mnist",
        math.inf,
        0.3,
        {"beta-CROWN": 71.0, "BICCOS": 76.0, "upper bound": 76.5},
    ),
    "cifar_cnn_a_mix": Published(
        lambda: nn.Sequential(
            Normalize(MEAN, (63 / 255, 62.1 / 255, 66.7 / 255)), *_cnn_a(3, 2048)
        ),
        "cifar",
        math.inf,
        2 / 255,
        {"beta-CROWN": 42.0, "BICCOS": 48.0, "upper bound": 53.0},
    ),
}


def load(name: str, reference: Path) -> tuple:
    """Return the network, images and labels."""
    model, images = NETWORKS[name].make().eval(), NETWORKS[name].images
    weights = torch.load(reference / f"{name}.pth", weights_only=True, map_location="cpu")
    for parameter, value in zip(model.parameters(), weights.values()):
        parameter.data.copy_(value)
    folder = reference / "sdp200" / images
    x = torch.from_numpy(np.load(folder / "X_sdp.npy")).float().permute(0, 3, 1, 2).contiguous()
    return model, x, torch.from_numpy(np.load(folder / "y_sdp.npy")).long().flatten()


def measure(name: str, ptb: PerturbationLpBox, n: int, branch: float, reference: Path) -> dict:
    """Certify the first images of a network's against one set."""
    (model, x, y), start = load(name, reference), time.perf_counter()
    settings = CertifySettings(METHODS if branch else BOUNDS, ATTACKS, time_limit=branch or None)
    certification = certify(model, x[:n], y[:n], [ptb], settings, progress=True)
    summary = certification.summary()
    return {
        "network": name,
        "set": ptb.title(),
        "n": summary["n"],
        "clean %": 100 * summary["clean"],
        "verified %": 100 * summary["certified"][0],
        "PGD limit %": 100 * summary["attacked"][0],
        "published %": NETWORKS[name].verified,
        "decided by": dict(Counter(certification.method[0])),
        "certified images": certification.is_status(CERTIFIED)[0].nonzero().squeeze(1).tolist(),
        "methods": settings.methods,
        "seconds": time.perf_counter() - start,
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per network and set.

    The plain l_2 ball and its part in the pixel range, or the l_inf set.
    """
    tasks_by_name = {}
    for name in settings["networks"]:
        norm, eps = NETWORKS[name].norm, NETWORKS[name].eps
        for clip in (None, (0.0, 1.0)) if norm == 2 else ((0.0, 1.0),):
            ptb = PerturbationLpBox(norm, eps, clip)
            tasks_by_name[f"{name}: {ptb.title()}"] = partial(
                measure, name, ptb, settings["n"], settings["branch_seconds"], places.reference
            )
    return tasks_by_name
