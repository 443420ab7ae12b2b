"""Problems for the complete verifier alpha-beta-CROWN.

An ONNX file, and per set what it is to be verified for.
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
from torch import Tensor, nn

from ..bounds.checks import check_weights
from ..bounds.margins import check_labels
from ..certification.metrics import TIMEOUT, UNKNOWN, Certification
from ..certification.records import header_of
from ..certification.settings import CertifySettings
from ..errors import InvalidArgumentError, OutputFolderError
from ..perturbations import PerturbationLpBox, as_perturbations
from ..utils.files import ensure_writable, write_bytes, write_json, write_text, writing
from ..utils.modes import evaluating
from .onnx_file import write_onnx

#: What says of which certification a problem is, and where results of single images may go.
PROBLEM, RESULTS = "problem.json", "results"
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
    found: Certification | None = None,
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
        found: A certification of the same; only what it leaves open is written. None: all images.
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
    sets, images = as_perturbations(perturbations), []
    if not (isinstance(time_limit, (int, float)) and 0 < time_limit < math.inf):
        raise InvalidArgumentError(
            f"time_limit={time_limit!r} must be a positive number of seconds"
        )
    if not len(x):
        raise InvalidArgumentError("x is empty; give at least one image")
    check_weights(model)
    for place, one in enumerate(sets):
        one.check_input(x)
        if not one.is_box() and not isinstance(one.eps, float):
            raise InvalidArgumentError(
                f"perturbations: {one.title()} has a radius per image; the verifier takes one "
                "for all, so export each radius by itself"
            )
        images.append(_open(found, place, len(x), sets))
    if not any(images):
        raise InvalidArgumentError(
            "found: every image is decided for every set; there is nothing to export"
        )
    shown = [one for one, own in zip(sets, images) if own]
    folder = ensure_writable(folder)
    told = {
        folder / f"{place}_l_{one.norm}": _told(model, x, y, one, own)
        for place, (one, own) in enumerate(zip(sets, images))
        if own
    }
    _check_no_others(folder, told)
    with writing(folder):
        with evaluating(model), torch.no_grad():
            classes = model(x[:1]).shape[-1]
        check_labels(y, classes, len(x), x.device)
        write_onnx(model, x[:2], folder / "model.onnx", [one.norm for one in shown])
        for (path, problem), one in zip(told.items(), shown):
            _write_set(path, problem, x, y, one, classes, time_limit)
        return list(told)


def _open(
    found: Certification | None, place: int, n: int, sets: Sequence[PerturbationLpBox]
) -> list[int]:
    """Return the images to verify for a set."""
    if found is None:
        return list(range(n))
    titles = [[one.title() for one in every] for every in (found.perturbations, sets)]
    if titles[0] != titles[1] or len(found) != n:
        raise InvalidArgumentError(
            f"found: it is of {len(found)} images against {'; '.join(titles[0])}, not of {n} "
            f"against {'; '.join(titles[1])}"
        )
    return [
        image for image, status in enumerate(found.status[place]) if status in (UNKNOWN, TIMEOUT)
    ]


def _told(
    model: nn.Module, x: Tensor, y: Tensor, one: PerturbationLpBox, images: list[int]
) -> dict[str, Any]:
    """Return what says of which certification a set's problem is, as it is read back."""
    header = header_of(model, x, y, [one], CertifySettings())
    return {
        **{name: header[name] for name in ("format", "model_sha256", "data_sha256", "n")},
        "set": header["sets"][0],
        "images": images,
    }


def _check_no_others(folder: Path, told: dict[Path, dict[str, Any]]) -> None:
    """Raise OutputFolderError if older problems are in the folder.

    Their results could be taken for those of the new ones.
    """
    model = next(iter(told.values()))["model_sha256"]
    for path in sorted(folder.glob(f"*/{PROBLEM}")):
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            # What is not written again still reads ../model.onnx, which is.
            same = old == told[path.parent] if path.parent in told else old["model_sha256"] == model
        except (OSError, ValueError, LookupError, TypeError):
            same = False
        if not same:
            raise OutputFolderError(
                f"output: {str(path.parent)!r} holds another problem, whose results could be taken "
                "for this one's; export into a new folder, or delete that one"
            )


def _write_set(
    folder: Path,
    told: dict[str, Any],
    x: Tensor,
    y: Tensor,
    one: PerturbationLpBox,
    classes: int,
    time_limit: float,
) -> None:
    images = told["images"]
    chosen = torch.tensor(images, device=x.device)
    shape = [-1, *x.shape[1:]]
    if one.is_box():
        lower, upper = box_of(x[chosen], one.of_images(chosen, x))
        rows = []
        for image, low, high in zip(images, lower, upper):
            write_text(
                folder / name_of(image), vnnlib(low, high, int(y[image]), classes, one.title())
            )
            rows.append(["../model.onnx", name_of(image), f"{time_limit:g}"])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text(folder / "instances.csv", text.getvalue())
        (folder / RESULTS).mkdir(
            exist_ok=True
        )  # the verifier does not make it, and would fail once it is done
        config = {
            "general": {"csv_name": "instances.csv"},
            "model": {"input_shape": shape},
            "bab": {"timeout": f"{time_limit:g}"},
        }  # of an image run by itself
    else:
        for name, array in (
            ("images", x[chosen].cpu().float().numpy()),
            ("labels", y[chosen].cpu().long().numpy()),
        ):
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_bytes(folder / f"{name}.npy", buffer.getvalue())
        write_text(folder / "load_images.py", _LOADER)
        eps = float(_outwards(torch.tensor(one.eps, dtype=torch.float64), 1))
        config = {
            "model": {"onnx_path": "../model.onnx", "input_shape": shape},
            "data": {
                "dataset": '\'Customized("load_images.py", "load_images")\'',
                "num_outputs": classes,
            },
            "specification": {"type": "lp", "norm": one.norm, "epsilon": repr(eps)},
            "attack": {"pgd_order": "skip"},
            "bab": {"timeout": f"{time_limit:g}"},
        }  # attacks l_inf only
    write_text(folder / "config.yaml", _yaml(config, one.title()))
    write_json(folder / PROBLEM, told)


def name_of(image: int) -> str:
    """Return the name of an image's VNNLIB file."""
    return f"image_{image:05d}.vnnlib"


def box_of(x: Tensor, one: PerturbationLpBox) -> tuple[Tensor, Tensor]:
    """Return the smallest float32 box around the set, up to rounding, which goes outwards."""
    lower, upper = one.enclosing_box(x.double().cpu())
    return _outwards(lower, -1), _outwards(upper, 1)


def _outwards(values: Tensor, sign: int) -> Tensor:
    """Return the next float32 numbers that are no smaller (sign +1) or no larger (sign -1)."""
    rounded = values.float()
    return torch.where(
        (rounded.double() - values) * sign < 0,
        torch.nextafter(rounded, torch.full_like(rounded, sign * math.inf)),
        rounded,
    )


def vnnlib(lower: Tensor, upper: Tensor, label: int, classes: int, title: str) -> str:
    """Return the question whether some other class can be as large as the label's, as VNNLIB.

    Args:
        lower: Lower end of each pixel, in any shape.
        upper: Upper ends, of the same shape.
        label: The true class.
        classes: K.
        title: A comment.

    Example:
        >>> print(vnnlib(torch.tensor([0.25]), torch.tensor([0.5]), 1, 2, "a box"))
        ; label 1, a box
        (declare-const X_0 Real)
        (declare-const Y_0 Real)
        (declare-const Y_1 Real)
        (assert (>= X_0 0.25))
        (assert (<= X_0 0.5))
        (assert (or (and (>= Y_0 Y_1))))
        <BLANKLINE>
    """
    ends = list(zip(lower.flatten().tolist(), upper.flatten().tolist()))
    lines = [
        f"; label {label}, {title}",
        *(f"(declare-const X_{i} Real)" for i in range(len(ends))),
        *(f"(declare-const Y_{k} Real)" for k in range(classes)),
    ]
    for i, (low, high) in enumerate(ends):
        lines += [f"(assert (>= X_{i} {low!r}))", f"(assert (<= X_{i} {high!r}))"]
    others = "".join(f"(and (>= Y_{k} Y_{label}))" for k in range(classes) if k != label)
    return "\n".join([*lines, f"(assert (or {others}))", ""])


def _yaml(config: dict[str, dict[str, Any]], title: str) -> str:
    lines = [f"# {title}"]
    for section, values in config.items():
        lines += [f"{section}:", *(f"  {name}: {value}" for name, value in values.items())]
    return "\n".join([*lines, ""])
