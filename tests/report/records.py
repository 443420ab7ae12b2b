"""Records of certifications made by hand, and reports on them."""

from __future__ import annotations

import json
import math

import torch

from lirpa_multinorm import Certification, CertifySettings, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.certification import (
    CERTIFIED,
    ERROR,
    FALSIFIED,
    MISCLASSIFIED,
    UNKNOWN,
    record_header,
    record_lines,
    records,
)
from lirpa_multinorm.report import certification_report

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5)]
C, F, U, M = CERTIFIED, FALSIFIED, UNKNOWN, MISCLASSIFIED
STATUS = [[C, C, F, U, M, C], [C, F, C, U, M, U]]
METHOD = [["IBP", "CROWN", "PGD", "", "clean", "IBP"], ["CROWN", "PGD", "IBP", "", "clean", ""]]
MARGIN = [
    [1.0, 0.5, -math.inf, -0.25, -math.inf, 0.25],
    [0.5, -math.inf, 2.0, -1.0, -math.inf, -math.inf],
]
LABELS = [0, 0, 1, 1, 2, 2]


def write(
    folder,
    status=STATUS,
    method=METHOD,
    margin=MARGIN,
    sets=SETS,
    seed=0,
    settings=CertifySettings(),
    images=0,
    left=(),
    damage="",
):
    """Write records of a certification made by hand, with the model and images that seeds give."""
    n = len(status[0])
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 3)
    torch.manual_seed(images)
    x = torch.rand(n, 4)
    points = {
        (place, image): x[image]
        for place, row in enumerate(status)
        for image, item in enumerate(row)
        if item == F
    }
    result = Certification(
        sets,
        status,
        method,
        torch.tensor(margin, dtype=torch.float64),
        torch.zeros(n).long(),
        seconds=torch.ones(n, dtype=torch.float64),
        adversarial=points,
        errors={image: "broken" for image, item in enumerate(status[0]) if item == ERROR},
    )
    lines = {i: record_lines.line_of(result, i, i, LABELS[i]) for i in range(n) if i not in left}
    folder.mkdir()
    header = record_header.header_of(model, x, torch.tensor(LABELS[:n]), sets, settings)
    records.write_records(folder / "records.jsonl", header, lines)
    with open(folder / "records.jsonl", "a") as file:
        file.write(damage)
    return folder


def report_of(tmp_path, *runs):
    text = certification_report(runs, tmp_path / "report")
    return text, json.loads((tmp_path / "report" / "report.json").read_text())
