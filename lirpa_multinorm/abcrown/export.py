"""Problems for the complete verifier alpha-beta-CROWN.

A problem is an ONNX file, with a folder per set for which the network is to be verified.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from ..bounds.checks import check_weights
from ..bounds.margins import check_labels
from ..certification.metrics import TIMEOUT, UNKNOWN, Certification
from ..certification.record_header import header_of
from ..certification.settings import CertifySettings
from ..errors import InvalidArgumentError, OutputFolderError
from ..perturbations import PerturbationL0, PerturbationLpBox, as_perturbations
from ..utils.files import ensure_writable, write_bytes, write_json, write_text, writing
from ..utils.modes import evaluating
from .onnx_file import write_onnx
from .vnnlib import box_of, name_of, outwards, vnnlib

#: The file that says of which certification a problem is, and the folder where results of single
#: images may go.
PROBLEM, RESULTS = "problem.json", "results"
_Config = dict[str, dict[str, Any]]
_LOADER = '''"""The images of this problem, for alpha-beta-CROWN."""
import os

import numpy as np
import torch


def load_images(spec):
    folder = os.path.dirname(os.path.abspath(__file__))
    images, labels = (
        torch.from_numpy(np.load(os.path.join(folder, name)))
        for name in ("images.npy", "labels.npy")
    )
    # No range of pixels: the plain ball is verified, which contains the ball within any range.
    return {"X": images, "labels": labels, "runnerup": None, "target_label": None,
            "eps": spec["epsilon"],
            "norm": spec["norm"]}
'''


def export_problems(
    folder: str | Path,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    perturbations: Sequence[PerturbationLpBox],
    *,
    certification: Certification | None = None,
    time_limit: float = 360.0,
) -> list[Path]:
    """Write a network and its images as problems of alpha-beta-CROWN, one folder per set.

    Beside ``model.onnx``, which takes pixels (a normalisation is folded in), each set's folder
    holds ``config.yaml`` and ``problem.json``; for l_inf one VNNLIB file per image, whose box is
    cut with the pixel range and never smaller than the set, and ``instances.csv``; for other norms
    the images, verified for the plain ball. Run in that folder::

        python .../alpha-beta-CROWN/complete_verifier/abcrown.py --config config.yaml | tee log.txt

    (without a GPU: with ``--device cpu``) and read ``log.txt`` with
    :func:`~lirpa_multinorm.abcrown.import_results`. The log holds no counterexamples. To get one
    that can be checked, run an l_inf image by itself, with ``--onnx_path ../model.onnx
    --vnnlib_path image_00003.vnnlib --save_adv_example --results_file results/image_00003.txt``
    besides, and read the folder ``results``. For other norms the verifier has no attack, and proves
    only.

    Args:
        folder: Where to write.
        model: Classifier (B, ...) -> (B, K) in float32.
        x: Images, shape (n, ...).
        y: Labels, shape (n,).
        perturbations: The sets.
        certification: One of the same images and sets; only what it leaves open is written. None:
            all images.
        time_limit: Seconds per image.

    Returns:
        The folders, one per set with anything to verify.

    Raises:
        MissingPackageError: The package onnx is not installed.
        InvalidArgumentError: An argument cannot be used, a weight is NaN or infinite, nothing is
            open, or a set that is no box has several radii.
        UnsupportedModelError: The model cannot be exported, or not for these norms.
        OutputFolderError: The folder cannot be written, or holds other problems.

    Source: alpha-beta-CROWN 8250d5f, docs/abcrown_usage.md and read_vnnlib.py; VNNLIB 1.0.
    """
    sets = as_perturbations(perturbations)
    _check_arguments(model, x, sets, time_limit)
    images = [_open(certification, set_index, len(x), sets) for set_index in range(len(sets))]
    if not any(images):
        raise InvalidArgumentError(
            "certification: every image is decided for every set; there is nothing to export"
        )
    folder = ensure_writable(folder)
    problems: dict[Path, dict[str, Any]] = {}
    open_sets: list[PerturbationLpBox] = []
    for set_index, (perturbation, open_images) in enumerate(zip(sets, images)):
        if open_images:
            path = folder / f"{set_index}_l_{perturbation.norm}"
            problems[path] = _problem(model, x, y, perturbation, open_images)
            open_sets.append(perturbation)
    _check_no_others(folder, problems)
    with writing(folder):
        with evaluating(model), torch.no_grad():
            classes = model(x[:1]).shape[-1]
        check_labels(y, classes, len(x), x.device)
        norms = [perturbation.norm for perturbation in open_sets]
        write_onnx(model, x[:2], folder / "model.onnx", norms)
        for (path, problem), perturbation in zip(problems.items(), open_sets):
            _write_set(path, problem, x, y, perturbation, classes, time_limit)
        return list(problems)


def _check_arguments(
    model: nn.Module, x: Tensor, sets: Sequence[PerturbationLpBox], time_limit: float
) -> None:
    """Raise InvalidArgumentError unless the network can be exported for the sets."""
    if not (isinstance(time_limit, (int, float)) and 0 < time_limit < math.inf):
        raise InvalidArgumentError(
            f"time_limit={time_limit!r} must be a positive number of seconds"
        )
    if not len(x):
        raise InvalidArgumentError("x is empty; give at least one image")
    check_weights(model)
    for perturbation in sets:
        perturbation.check_input(x)
        if isinstance(perturbation, PerturbationL0):
            raise InvalidArgumentError(
                f"perturbations: {perturbation!r} has no form in alpha-beta-CROWN's problems, whose"
                " sets are l_p balls with p >= 1; leave the l_0 set out"
            )
        if not perturbation.is_box() and not isinstance(perturbation.eps, float):
            raise InvalidArgumentError(
                f"perturbations: {perturbation.title()} has a radius per image; the verifier takes"
                " one for all, so export each radius by itself"
            )


def _open(
    certification: Certification | None, set_index: int, n: int, sets: Sequence[PerturbationLpBox]
) -> list[int]:
    """Return the images to verify for a set."""
    if certification is None:
        return list(range(n))
    titles, expected = (
        [perturbation.title() for perturbation in described]
        for described in (certification.perturbations, sets)
    )
    if titles != expected or len(certification) != n:
        raise InvalidArgumentError(
            f"certification: it is of {len(certification)} images against {'; '.join(titles)}, "
            f"not of {n} against {'; '.join(expected)}"
        )
    statuses = certification.status[set_index]
    return [image for image, status in enumerate(statuses) if status in (UNKNOWN, TIMEOUT)]


def _problem(
    model: nn.Module, x: Tensor, y: Tensor, perturbation: PerturbationLpBox, images: list[int]
) -> dict[str, Any]:
    """Return what says of which certification a set's problem is, as it is read back."""
    header = header_of(model, x, y, [perturbation], CertifySettings())
    return {
        **{name: header[name] for name in ("format", "model_sha256", "data_sha256", "n")},
        "set": header["sets"][0],
        "images": images,
    }


def _check_no_others(folder: Path, problems: dict[Path, dict[str, Any]]) -> None:
    """Raise OutputFolderError if older problems are in the folder.

    Their results could be taken for those of the new ones.
    """
    model = next(iter(problems.values()))["model_sha256"]
    for path in sorted(folder.glob(f"*/{PROBLEM}")):
        new = problems.get(path.parent)
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            # What is not written again still reads ../model.onnx, which is.
            same = old["model_sha256"] == model if new is None else old == new
        except (OSError, ValueError, LookupError, TypeError):
            same = False
        if not same:
            raise OutputFolderError(
                f"output: {str(path.parent)!r} holds another problem, whose results could be taken "
                "for this one's; export into a new folder, or delete that one"
            )


def _write_set(
    folder: Path,
    problem: dict[str, Any],
    x: Tensor,
    y: Tensor,
    perturbation: PerturbationLpBox,
    classes: int,
    time_limit: float,
) -> None:
    """Write the folder of one set: its images, its configuration and what it is of."""
    images, title = problem["images"], perturbation.title()
    shape = [-1, *x.shape[1:]]
    chosen = torch.tensor(images, device=x.device)
    if perturbation.is_box():
        boxes = box_of(x[chosen], perturbation.of_images(chosen, x))
        _write_boxes(folder, images, boxes, y, classes, title, time_limit)
        config = _box_config(shape, time_limit)
    else:
        _write_images(folder, x[chosen], y[chosen])
        config = _ball_config(shape, perturbation, classes, time_limit)
    write_text(folder / "config.yaml", _yaml(config, title))
    write_json(folder / PROBLEM, problem)


def _write_boxes(
    folder: Path,
    images: list[int],
    boxes: tuple[Tensor, Tensor],
    y: Tensor,
    classes: int,
    title: str,
    time_limit: float,
) -> None:
    """Write a VNNLIB file per image, their list, and the folder for results of single images."""
    rows = []
    for image, lower, upper in zip(images, *boxes):
        text = vnnlib(lower, upper, int(y[image]), classes, title)
        write_text(folder / name_of(image), text)
        rows.append(["../model.onnx", name_of(image), f"{time_limit:g}"])
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(folder / "instances.csv", table.getvalue())
    # The verifier does not make it, and would fail once it is done.
    (folder / RESULTS).mkdir(exist_ok=True)


def _write_images(folder: Path, x: Tensor, y: Tensor) -> None:
    """Write images and labels as arrays, and the module that loads them."""
    for name, array in (("images", x.cpu().float().numpy()), ("labels", y.cpu().long().numpy())):
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_bytes(folder / f"{name}.npy", buffer.getvalue())
    write_text(folder / "load_images.py", _LOADER)


def _box_config(shape: list[int], time_limit: float) -> _Config:
    """Return the configuration for boxes; its time limit is that of an image run by itself."""
    return {
        "general": {"csv_name": "instances.csv"},
        "model": {"input_shape": shape},
        "bab": {"timeout": _plain(time_limit)},
    }


def _ball_config(
    shape: list[int], perturbation: PerturbationLpBox, classes: int, time_limit: float
) -> _Config:
    """Return the configuration for plain balls, without an attack: it is for l_inf only."""
    eps = float(outwards(torch.tensor(perturbation.eps, dtype=torch.float64, device="cpu"), 1))
    return {
        "model": {"onnx_path": "../model.onnx", "input_shape": shape},
        "data": {"dataset": 'Customized("load_images.py", "load_images")', "num_outputs": classes},
        "specification": {"type": "lp", "norm": perturbation.norm, "epsilon": eps},
        "attack": {"pgd_order": "skip"},
        "bab": {"timeout": _plain(time_limit)},
    }


def _plain(seconds: float) -> float:
    """Return a time in seconds, as a whole number where it is one."""
    return int(seconds) if seconds == int(seconds) else float(seconds)


def _yaml(config: _Config, title: str) -> str:
    """Return a configuration as YAML, below a comment."""
    return f"# {title}\n{yaml.safe_dump(config, sort_keys=False)}"
