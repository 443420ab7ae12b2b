"""Certificates against transforms and patches: ours beside the published ways, and of our networks.

    python -m benchmarks.run transforms --official FOLDER
    python -m benchmarks.run universal
    python -m benchmarks.run universal_methods --runs FOLDER

"published" networks were trained for transforms by others; FOLDER is a checkout of uiuc-arc/CGT.
Adaptive splitting is timed in turn with the official verifier on the same images, in processor
time; no attack comes before either. "trained" networks are those in ``networks/``, and "runs" those
of a comparison's folder; they are certified by the default cascade against the columns of the
paper's tables, and patches.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lirpa_multinorm import CertifySettings, PerturbationGeometric, PerturbationPatch, certify
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.perturbations.paper_transforms import paper_transforms
from lirpa_multinorm.training import load_checkpoint

from .official_cgt import OfficialCgt
from .run import Places, Task

NETWORKS = Path(__file__).parents[1] / "networks"


class Normalized(nn.Module):
    """The architecture of CGT's MNIST networks, behind their normalisation.

    Args:
        weights: State dict, whose "normalize.mean" and "normalize.std" are scalars.
    """

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.mean, self.std = (weights.pop(f"normalize.{name}") for name in ("mean", "std"))
        self.conv1 = nn.Conv2d(1, 32, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(3136, 200), nn.Linear(200, 10)
        self.load_state_dict(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images (B, 1, 28, 28)."""
        x = self.conv1((x - self.mean) / self.std).relu()
        return self.fc2(self.fc1(self.conv2(x).relu().flatten(1)).relu())


def images(data: str, n: int, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first test images and their labels."""
    loaded = load(data, data_dir=places.data_dir, download=False)
    return to_unit(loaded.x_test[:n]), loaded.y_test[:n].long()


def timed(model: nn.Module, x: torch.Tensor, y: torch.Tensor, sets: list, method: str) -> tuple:
    """Return how many images a method certifies, and the seconds of processor time it takes."""
    start = time.process_time()
    result = certify(model, x, y, sets, CertifySettings([method], attack=None))
    return result.status[0].count(CERTIFIED), time.process_time() - start


def published(case: dict, places: Places) -> dict:
    """Certify a published network adaptively, and some of its images officially.

    Args:
        case: "network", its "column" of the paper's tables, the number of its transforms in the
            official "config", how many images are certified, "n", how many of them officially,
            "n_official", and in which "batches".
        places: Where the official code is.
    """
    official, few = OfficialCgt(places.official), case["n_official"]
    model = Normalized(official.weights(case["network"])).eval()
    (x, y), sets = images("mnist", case["n"], places), paper_transforms(case["column"])
    certified, seconds = timed(model, x, y, sets, "Splitting")
    row = {
        "network": case["network"],
        "transforms": sets[0].name,
        "clean": int((model(x).argmax(1) == y).sum()),
        "certified": certified,
        "n": case["n"],
        "seconds": round(seconds, 2),
        "images of the official verifier": few,
    }
    x, y = x[:few], y[:few]
    for batch in case["batches"]:
        ours, before = timed(model, x, y, sets, "Splitting")
        theirs = official.verified(case["network"], case["config"], x, y, batch)
        _, after = timed(model, x, y, sets, "Splitting")
        mean = (before + after) / 2
        row["certified of these"], row["certified officially"] = ours, theirs.certified
        row[f"seconds for these, batch {batch}"] = round(mean, 2)
        row[f"seconds, official, batch {batch}"] = round(theirs.seconds, 2)
        row[f"ratio, batch {batch}"] = round(mean / theirs.seconds, 4)
    return row


def trained(folder: Path, settings: dict, places: Places) -> dict:
    """Certify one of our networks against transforms and patches."""
    checkpoint = load_checkpoint(folder / "checkpoint.pt")
    x, y = images(settings["data"], settings["n"], places)
    sets = [*paper_transforms(settings["data"])]
    sets += [PerturbationPatch(size) for size in settings["patches"]]
    result = certify(checkpoint.model.eval(), x, y, sets).summary()
    transforms = [
        share
        for perturbation, share in zip(sets, result["certified"])
        if isinstance(perturbation, PerturbationGeometric)
    ]
    return {
        "network": folder.name,
        "n": result["n"],
        "clean": result["clean"],
        "names": [perturbation.name for perturbation in sets],
        "certified": result["certified"],
        "attacked": result["attacked"],
        "intervals": result["intervals"]["certified"],
        "mean of transforms": round(sum(transforms) / len(transforms), 4),
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return a task per network."""
    by_others = {
        case["column"]: partial(published, case, places) for case in settings.get("published", ())
    }
    folders = [NETWORKS / name for name in settings.get("trained", ())]
    folders += [places.runs / name for name in settings.get("runs", ())]
    ours = {folder.name: partial(trained, folder, settings, places) for folder in folders}
    return {**by_others, **ours}
