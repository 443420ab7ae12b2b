"""Audit of certificates.

A strong attack on every (image, norm) pair that the cascade has certified.

    python -m benchmarks.run certificates --runs FOLDER

Certifies trained networks for their sets (ball and pixel range), then attacks the certified pairs:
margin and cross-entropy losses, long and short steps, many restarts. A falsified pair would mean an
unsound bound; it is named, and makes the command fail. FOLDER holds the runs that the configuration
names.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial

import torch

from lirpa_multinorm import AttackSettings, CertifySettings, certify
from lirpa_multinorm.attacks import margin_loss, pgd
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.training import load_checkpoint

from .run import Places, Task

#: Long steps find far points, short ones the last of a margin.
ATTACKS = [
    AttackSettings(steps=100, restarts=5, step_size=0.25),
    AttackSettings(steps=100, restarts=3, step_size=0.05),
    AttackSettings(steps=100, restarts=2, loss="ce", step_size=0.1),
]
BATCH = 250


def falsified(
    model, x: torch.Tensor, y: torch.Tensor, perturbation, restarts: float
) -> torch.Tensor:
    """Return which images an attack breaks inside the set."""
    broken = torch.zeros(len(x), dtype=torch.bool)
    for number, attack in enumerate(ATTACKS):
        attack = dataclasses.replace(attack, restarts=max(1, round(attack.restarts * restarts)))
        for images in torch.arange(len(x)).split(BATCH):
            generator = torch.Generator().manual_seed(1000 * number + int(images[0]))
            (points,) = pgd(model, x[images], y[images], [perturbation], attack, generator)
            with torch.no_grad():
                adversarial = margin_loss(model(points), y[images]) >= 0
            broken[images] |= adversarial & perturbation.contains(points, x[images])
    return broken


def audit(run: str, settings: dict, places: Places) -> dict:
    """Certify a trained network by the default cascade, and attack what is certified."""
    checkpoint = load_checkpoint(places.runs / run / "checkpoint.pt")
    data = load(settings["data"], data_dir=places.data_dir, download=False)
    x, y = to_unit(data.x_test[: settings["n"]]), data.y_test[: settings["n"]].long()
    model = checkpoint.model.eval()
    certification = certify(
        model, x, y, checkpoint.perturbations, CertifySettings(attack=None), progress=True
    )
    rows, summary = [], certification.summary()
    for perturbation, method, status in zip(
        checkpoint.perturbations, certification.method, certification.is_status(CERTIFIED)
    ):
        certified = status.nonzero().squeeze(1)
        broken = certified[
            falsified(model, x[certified], y[certified], perturbation, settings["restarts"])
        ].tolist()
        rows.append(
            {
                "set": perturbation.title(),
                "certified pairs": len(certified),
                "falsified": broken,
                "certified by": dict(Counter(method[i] for i in certified.tolist())),
            }
        )
    return {
        "loss": checkpoint.config.loss,
        "n": summary["n"],
        "clean %": 100 * summary["clean"],
        "certified union %": 100 * summary["certified_union"],
        "sets": rows,
        "attacks": [dataclasses.asdict(attack) for attack in ATTACKS],
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per trained network."""
    return {run: partial(audit, run, settings, places) for run in settings["runs"]}


def problems(rows: list[dict]) -> list[str]:
    """Return the certificates that an attack has broken."""
    return [
        f"{row['key']}, {pairs['set']}: certified images {pairs['falsified']} are falsified"
        for row in rows
        for pairs in row["sets"]
        if pairs["falsified"]
    ]


def tables(rows: list[dict]) -> dict[str, list[dict]]:
    """Return the networks, and what was attacked of each set."""
    attacked = [
        {
            "run": row["key"],
            "set": pairs["set"],
            "certified pairs": pairs["certified pairs"],
            "falsified": len(pairs["falsified"]),
        }
        for row in rows
        for pairs in row["sets"]
    ]
    whole = {
        "run": "all",
        "set": "",
        **{
            name: sum(pairs[name] for pairs in attacked)
            for name in ("certified pairs", "falsified")
        },
    }
    return {
        "Networks": [
            {
                "run": row["key"],
                "n": row["n"],
                "clean %": row["clean %"],
                "certified union %": row["certified union %"],
            }
            for row in rows
        ],
        "Attacked certificates": [*attacked, whole],
    }
