"""Union certification beside a loop that calls the host once per norm and method.

    python -m benchmarks.run certification_speed --runs FOLDER

Both bound the same sets (l_inf cut with the pixel range, the plain l_2 ball: the host knows no
other) by IBP, CROWN-IBP and CROWN, without an attack. The loop bounds every correctly classified
image by every method; ours only what is open, all norms in one batch. The ratio of times is
interleaved, and the verdicts are compared. They are the same but for a few pairs: the host also
bounds anew, and may loosen, neurons of a convolution that its IBP knows not to switch, and those
that fill up a batch, and CROWN's slopes jump where an interval changes. What is lost the default
cascade's next stage must find.
"""

from __future__ import annotations

from functools import partial

import torch

from lirpa_multinorm import (
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    certify,
    margin_matrix,
)
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.training import load_checkpoint

from .common import TOLERANCE, host_input, host_module, interleaved, ratio
from .run import Figure, Places, Task

METHODS = ("IBP", "CROWN-IBP", "CROWN")


@torch.no_grad()
def host_loop(model, x: torch.Tensor, y: torch.Tensor, sets: list, batch: int) -> torch.Tensor:
    """Return which (set, image) pairs the host certifies by any method."""
    theirs, right = host_module(model, x[:batch]), (model(x).argmax(1) == y).nonzero().squeeze(1)
    certified = torch.zeros(len(sets), len(x), dtype=torch.bool)
    for row, perturbation in enumerate(sets):
        for method in METHODS:
            for images in right.split(batch):
                perturbed = host_input(x[images], perturbation.norm, perturbation.eps)
                lower, _ = theirs.compute_bounds(
                    x=perturbed, C=margin_matrix(y[images], 10), method=method, bound_upper=False
                )
                certified[row, images] |= (lower > 0).all(1)
    return certified


def compare(run: str, settings: dict, places: Places) -> dict:
    """Time both on one trained network, and compare what they certify."""
    checkpoint = load_checkpoint(places.runs / run / "checkpoint.pt")
    model, batch = checkpoint.model.eval(), settings["batch"]
    data = load(settings["data"], data_dir=places.data_dir, download=False)
    x, y = to_unit(data.x_test[: settings["n"]]), data.y_test[: settings["n"]].long()
    eps = {perturbation.norm: perturbation.eps for perturbation in checkpoint.perturbations}
    sets = [PerturbationLinf(eps[float("inf")]), PerturbationL2Box(eps[2.0], clip=None)]
    how, verdicts = CertifySettings(METHODS, attack=None, batch_size=batch), {}

    def ours() -> None:
        """Certify all norms together."""
        verdicts["ours"] = certify(model, x, y, sets, how).is_status(CERTIFIED)

    def loop() -> None:
        """Call the host."""
        verdicts["host"] = host_loop(model, x, y, sets, batch)

    timing = interleaved({"ours": ours, "host loop": loop}, settings["repeats"], warmup=0)
    lost = verdicts["host"] & ~verdicts["ours"]
    default = CertifySettings(attack=None, batch_size=batch)
    certifications = [
        certify(model, x[pairs], y[pairs], [perturbation], default)
        for perturbation, pairs in zip(sets, lost)
        if pairs.any()
    ]
    return {
        "host loop to ours": ratio(timing, "host loop", "ours"),
        "timing": timing,
        "n": len(x),
        "images per second": {name: len(x) / times["median"] for name, times in timing.items()},
        "sets": [perturbation.title() for perturbation in sets],
        "methods": METHODS,
        "certified": verdicts["ours"].sum(1).tolist(),
        "only by the host": int(lost.sum()),
        "of these by the default cascade": sum(
            int(certification.is_status(CERTIFIED).sum()) for certification in certifications
        ),
        "only by us": int((verdicts["ours"] & ~verdicts["host"]).sum()),
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per trained network."""
    return {run: partial(compare, run, settings, places) for run in settings["runs"]}


def problems(rows: list[dict]) -> list[str]:
    """Return where a certificate of the host's loop is lost for good."""
    return [
        f"{row['key']}: {row['only by the host']} pairs are certified by the host's loop, "
        f"{row['of these by the default cascade']} of them by the default cascade"
        for row in rows
        if row["only by the host"] > row["of these by the default cascade"]
    ]


def figures(rows: list[dict]) -> dict[str, Figure]:
    """Return how many times as fast ours is."""
    return {
        row["key"]: Figure(row["host loop to ours"]["median"], TOLERANCE, "higher") for row in rows
    }
