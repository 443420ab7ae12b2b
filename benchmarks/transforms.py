"""Certificates against transforms and patches: ours beside the published ways, and of our networks.

    python -m benchmarks.run transforms --reference FOLDER
    python -m benchmarks.run universal
    python -m benchmarks.run universal_methods --runs FOLDER

"published" networks were trained for transforms by others (CGT). Adaptive splitting is timed beside
the published grid (interval weights, IBP of every cell) on the same images, in processor time; no
attack comes before either. "trained" networks are those in ``networks/``, and "runs" those of a
comparison's folder; they are certified by the default cascade against the columns of the paper's
tables, and patches.
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

from .run import Places, Task

NETWORKS = Path(__file__).parents[1] / "networks"
#: What CGT's own verifier reports for its networks' first 100 test images: certified, and seconds
#: on one thread of a shared machine.
PUBLISHED = {"cgt_mnist_r30": (94, 28), "cgt_mnist_t2": (87, 712)}


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


def published(network: str, column: str, settings: dict, places: Places) -> dict:
    """Certify a published network adaptively, and its first images by the fixed grid too."""
    weights = torch.load(places.reference / f"{network}.pt", weights_only=True, map_location="cpu")
    model, (x, y) = Normalized(weights).eval(), images("mnist", settings["n"], places)
    sets, few = paper_transforms(column), settings["n_grid"]
    certified, seconds = timed(model, x, y, sets, "Splitting")
    ours, ours_seconds = timed(model, x[:few], y[:few], sets, "Splitting")
    grid, grid_seconds = timed(model, x[:few], y[:few], sets, "Grid-IBP")
    known, theirs = PUBLISHED[network]
    return {
        "network": network,
        "transforms": sets[0].name,
        "clean": int((model(x).argmax(1) == y).sum()),
        "certified": certified,
        "n": settings["n"],
        "seconds": round(seconds, 2),
        "certified, published": known,
        "seconds, published": theirs,
        "images of the grid": few,
        "certified of these": ours,
        "certified by the grid": grid,
        "seconds for these": round(ours_seconds, 2),
        "seconds, grid": round(grid_seconds, 2),
        "ratio": round(ours_seconds / grid_seconds, 4),
    }


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
        network: partial(published, network, column, settings, places)
        for network, column in settings.get("published", {}).items()
    }
    folders = [NETWORKS / name for name in settings.get("trained", ())]
    folders += [places.runs / name for name in settings.get("runs", ())]
    ours = {folder.name: partial(trained, folder, settings, places) for folder in folders}
    return {**by_others, **ours}
