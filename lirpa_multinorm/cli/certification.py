"""The command ``certify``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..certification import (
    EVALUATION_ATTACKS,
    METHODS,
    NOT_RUN,
    STAGES,
    STATUSES,
    Certification,
    CertifySettings,
    certify,
    certify_to,
)
from ..certification.settings import ROUNDINGS
from ..data import ImageData, to_unit
from ..errors import InvalidArgumentError
from ..experiments.comparison import norm_name
from ..experiments.settings import add_setting_arguments, given, nested, sets_of, with_radii
from ..perturbations import PerturbationLpBox
from ..report import markdown_table
from ..training import Checkpoint, load_checkpoint
from ..training.preflight import check_radii
from ..utils import distributed
from ..utils.environment import environment
from ..utils.files import write_json, write_text, writing
from .arguments import add_data_arguments, check_device, data_from, guarded

#: How long the processes of torchrun may differ in their work: they exchange nothing.
_PATIENCE_SECONDS = 7 * 24 * 3600.0


def add_problem_arguments(parser: argparse.ArgumentParser, sets: bool = True) -> None:
    """Add the arguments that say what is certified: a network, images and, if wanted, sets."""
    parser.add_argument("checkpoint", help="file written by training (checkpoint.pt)")
    add_data_arguments(parser, "digits")
    if sets:
        add_setting_arguments(
            parser.add_argument_group(
                "radii",
                "each instead of the checkpoint's, whose other sets stay; --norms leaves sets out",
            ),
            ["eps."],
        )
        parser.add_argument(
            "--norms",
            nargs="+",
            choices=["inf", "2", "1"],
            help="certify against the sets of these norms only",
        )
        parser.add_argument(
            "--no-clip",
            action="store_true",
            help="certify the plain balls, not balls within the range of pixels",
        )


def problem_of(args: argparse.Namespace) -> tuple[Checkpoint, list[PerturbationLpBox], ImageData]:
    """Load the network, the sets and the images that the arguments name."""
    checkpoint = load_checkpoint(args.checkpoint)
    sets = _chosen(checkpoint.perturbations, args)
    if getattr(args, "no_clip", False):
        sets = [PerturbationLpBox(one.norm, one.eps, clip=None) for one in sets]
    data = data_from(args, "digits")
    if tuple(checkpoint.spec.in_shape) != data.in_shape:
        raise InvalidArgumentError(
            f"data {data.name!r} has images {data.in_shape}; the checkpoint's model takes "
            f"{tuple(checkpoint.spec.in_shape)}. Choose the data it was trained on"
        )
    check_radii(sets, data.x_test, data.y_test)
    return checkpoint, sets, data


def _chosen(sets: list[PerturbationLpBox], args: argparse.Namespace) -> list[PerturbationLpBox]:
    """Return a checkpoint's sets of the norms asked for, with the radii that flags give."""
    eps = nested(given(args)).get("eps", {})
    new = [one.norm for one in sets_of(eps)]
    sets = with_radii(sets, eps)
    asked = getattr(args, "norms", None)
    if asked is None:
        return sets
    missing = [norm for norm in asked if float(norm) not in {one.norm for one in sets}]
    if missing:
        raise InvalidArgumentError(
            f"--norms {missing[0]}: the checkpoint has no set of this norm; give its radius "
            f"with --eps-{missing[0]}"
        )
    for norm in new:
        if norm not in set(map(float, asked)):
            raise InvalidArgumentError(
                f"--norms {' '.join(asked)} leaves out the l_{norm:g} set whose radius is "
                "given; name it too, or leave its radius out"
            )
    return [one for one in sets if one.norm in set(map(float, asked))]


def add_certification_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``certify`` understands."""
    add_problem_arguments(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        metavar="METHOD",
        help=f"bounds to try in order, among {', '.join(STAGES)} (default: {' '.join(METHODS)})",
    )
    parser.add_argument("--no-attack", action="store_true", help="search no adversarial examples")
    parser.add_argument(
        "--attack-steps",
        type=int,
        metavar="N",
        help=f"gradient steps per restart (default: {EVALUATION_ATTACKS[0].steps})",
    )
    parser.add_argument(
        "--attack-restarts",
        type=int,
        metavar="N",
        help=(
            "restarts of each attack (default: "
            + " and ".join(f"{one.restarts} with the loss {one.loss}" for one in EVALUATION_ATTACKS)
            + ")"
        ),
    )
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help="per image, checked before each method"
    )
    parser.add_argument(
        "--total-time-limit", type=float, metavar="SECONDS", help="images left then are not run"
    )
    parser.add_argument(
        "--rounding",
        choices=ROUNDINGS,
        default=ROUNDINGS[0],
        help=f"errors of floating point that certificates withstand (default: {ROUNDINGS[0]})",
    )
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="for records.jsonl (one line per image, as they come), summary.json and summary.md",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the records that the output folder holds"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help=(
            "do every Nth batch from the Ith on (from 0), for N processes "
            "with the same output folder; the last one merges"
        ),
    )
    parser.add_argument("--no-progress", action="store_true")


@guarded
def run_certification(args: argparse.Namespace) -> None:
    """Certify a checkpoint, print the accuracies, and record everything if asked to."""
    shard = _shard_of(args)
    settings = CertifySettings(
        args.methods,
        _attacks_of(args),
        args.batch_size,
        args.seed,
        time_limit=args.time_limit,
        total_time_limit=args.total_time_limit,
        rounding=args.rounding,
    )
    check_device(args.device)
    checkpoint, sets, data = problem_of(args)
    about = {
        "checkpoint": str(args.checkpoint),
        "data": data.name,
        "settings": settings,
        "environment": environment(args.device),
    }
    with distributed.process_group(args.device, _PATIENCE_SECONDS):
        images = to_unit(data.x_test).to(args.device), data.y_test.to(args.device)
        model = checkpoint.model.to(args.device)
        if args.output is None:
            _show(certify(model, *images, sets, settings, not args.no_progress), about)
            return
        found = certify_to(
            args.output,
            model,
            *images,
            sets,
            settings,
            shard=shard,
            resume=args.resume,
            progress=not args.no_progress,
        )
        left = int(found.is_status(NOT_RUN).any(0).sum())
        if left and (shard or distributed.world_size() > 1):
            print(
                f"{len(found) - left} of {len(found)} images are recorded by this shard in"
                f" {args.output}; the last shard to finish merges all"
            )
            return
        _show(found, about, Path(args.output))


def _shard_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """Return (i, n) of --shard, and check what needs an output folder."""
    if args.output is None and (args.resume or args.shard):
        raise InvalidArgumentError(
            f"{'--resume' if args.resume else '--shard'} needs --output: the folder of records"
        )
    if args.output is not None and Path(args.output).suffix in (".json", ".jsonl", ".md"):
        raise InvalidArgumentError(
            f"--output {args.output}: name a folder; summary.json is written in it"
        )
    if args.shard is None:
        return None
    place, _, count = args.shard.partition("/")
    try:
        return int(place), int(count)
    except ValueError:
        raise InvalidArgumentError(
            f"--shard {args.shard}: give I/N, such as 0/4 for the first of four"
        ) from None


def _attacks_of(args: argparse.Namespace) -> tuple | None:
    """Return the attacks that the flags describe; None for no attack."""
    flags = {
        name: value
        for name, value in (("steps", args.attack_steps), ("restarts", args.attack_restarts))
        if value is not None
    }
    if args.no_attack:
        if flags:
            raise InvalidArgumentError(
                f"--no-attack and --attack-{next(iter(flags))} contradict each other; leave one "
                "of them out"
            )
        return None
    return tuple(dataclasses.replace(one, **flags) for one in EVALUATION_ATTACKS)


# --- the result -----------------------------------------------------------------------------------


def _show(found: Certification, about: dict[str, Any], folder: Path | None = None) -> None:
    """Print the result, and write it to a folder."""
    result = found.summary()
    text = _as_text(found, result, about)
    print(text)
    if folder is not None:
        described = [
            {"norm": str(one.norm), "eps": one.eps, "clip": one.clip, "title": one.title()}
            for one in found.perturbations
        ]
        with writing(folder):
            write_json(
                folder / "summary.json",
                {**about, "perturbations": described, "result": result, "errors": found.errors},
            )
            write_text(folder / "summary.md", text + "\n")
        print(f"\nrecords, summary.json and summary.md: {folder}")


def _as_text(found: Certification, result: dict[str, Any], about: dict[str, Any]) -> str:
    """Return the result as Markdown: accuracies, then how every status came about."""
    names = [f"{norm_name(one)} {one.eps:g}" for one in found.perturbations]
    parts = [
        (
            f"{about['checkpoint']} on {result['n']} images of {about['data']}:"
            f" {'; '.join(result['sets'])}"
        ),
        markdown_table(_accuracies(result, names), ["accuracy", "share", "95 % interval"]),
        markdown_table(
            [{"images": name, **counts} for name, counts in zip(names, result["counts"])],
            ["images", *STATUSES],
        ),
    ]
    for what, images in (("not run", result["not_run"]), ("error", sorted(found.errors))):
        if images:
            parts.append(
                f"{what}: image{'s' * (len(images) > 1)} {', '.join(map(str, images[:10]))}"
                f"{' and more' * (len(images) > 10)}"
            )
    return "\n\n".join(parts)


def _accuracies(result: dict[str, Any], names: list[str]) -> list[dict[str, str]]:
    rows = []
    union = (
        ("certified_union", "attacked_union") if len(names) > 1 else ()
    )  # of one set it is that set's own
    for kind in ("clean", "certified", *union[:1], "attacked", *union[1:]):
        shares, intervals = result[kind], result["intervals"][kind]
        label = kind.replace("_", " ")
        for name, share, interval in (
            zip(names, shares, intervals) if isinstance(shares, list) else [("", shares, intervals)]
        ):
            rows.append(
                {
                    "accuracy": f"{label} {name}".strip(),
                    "share": f"{share:.4f}",
                    "95 % interval": f"{interval[0]:.4f} to {interval[1]:.4f}",
                }
            )
    return rows
