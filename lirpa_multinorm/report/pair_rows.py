"""Certifications as tables of one row per image and set: CSV files and pandas frames."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..certification import Certification
from ..errors import InvalidArgumentError, LirpaMultinormError
from ..utils.files import ensure_writable, write_text, writing
from .runs import Runs, load_runs

if TYPE_CHECKING:
    import pandas

#: The columns, in order; "run" and "label" only of recorded runs.
COLUMNS = ("run", "image", "label", "prediction", "set", "status", "method", "margin", "seconds")


def pair_rows(certification: Certification) -> list[dict[str, Any]]:
    """Return a row per image and set.

    Args:
        certification: A result of ``certify`` or ``read_records``.

    Returns:
        Rows with "image" (its index), "prediction" (-1: none), "set" (norm and radius), "status",
        "method" (which decided; "" where none did), "margin" (its best lower bound; None where
        there is none) and "seconds" (spent on the image for all sets).

    Example:
        >>> import torch
        >>> from lirpa_multinorm import PerturbationLinf
        >>> result = Certification([PerturbationLinf(0.1)], [["certified"]], [["IBP"]],
        ...                        torch.tensor([[0.5]]), torch.tensor([7]))
        >>> row = pair_rows(result)[0]
        >>> row["prediction"], row["set"], row["status"], row["margin"]
        (7, 'l_inf ball of radius 0.1 within [0, 1]', 'certified', 0.5)
    """
    predictions, seconds = certification.prediction.tolist(), certification.seconds.tolist()
    margins = certification.margin.tolist()
    return [
        {
            "image": image,
            "prediction": predictions[image],
            "set": perturbation.title(),
            "status": certification.status[index][image],
            "method": certification.method[index][image],
            "margin": margins[index][image] if math.isfinite(margins[index][image]) else None,
            "seconds": seconds[image],
        }
        for image in range(len(certification))
        for index, perturbation in enumerate(certification.perturbations)
    ]


def data_frame(certification: Certification) -> pandas.DataFrame:
    """Return :func:`pair_rows` as a pandas frame.

    Raises:
        LirpaMultinormError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise LirpaMultinormError(
            "a frame needs pandas, which is not installed: pip install pandas, or use pair_rows"
        ) from error
    return pandas.DataFrame(pair_rows(certification))


def write_csv(runs: Runs, path: str | Path) -> Path:
    """Write recorded certifications as one CSV file, a line per run, image and set.

    Args:
        runs: Folders of records, or (name, folder) pairs, as of
            :func:`~lirpa_multinorm.report.certification_report`.
        path: The file; its folder is made.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: The path is a folder.
        RecordsError: A folder holds no records.
        OutputFolderError: The file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidArgumentError(f"path: {str(path)!r} is a folder; name a file in it")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in load_runs(runs):
        writer.writerows(_named(pair_rows(run.certification), run.name, run.labels))
    ensure_writable(path.parent)
    with writing(path):
        write_text(path, text.getvalue())
    return path


def _named(rows: Sequence[dict[str, Any]], name: str, labels: Sequence[int]) -> list[dict]:
    """Return rows with their run and true classes; what is missing is empty."""
    return [{"run": name, "label": labels[row["image"]], **row} for row in rows]
