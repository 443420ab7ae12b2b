"""The commands ``export`` and ``import``, to and from the complete verifier alpha-beta-CROWN."""

from __future__ import annotations

import argparse
import shlex

from ..abcrown import export_problems, import_results
from ..abcrown.export import RESULTS
from ..certification import read_records
from ..data import to_unit
from ..errors import InvalidArgumentError
from ..perturbations.described import has_radius
from .arguments import guarded, in_words_of_flags
from .problem import add_problem_arguments, problem_of


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    add_problem_arguments(parser)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        required=True,
        help="for model.onnx and one folder per set (required)",
    )
    parser.add_argument(
        "--records",
        metavar="FOLDER",
        help=(
            "folder of certify --output; only what it leaves open is exported (default: all images)"
        ),
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=360.0,
        metavar="SECONDS",
        help="per image (default: 360)",
    )


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``import``; the problem's folder names the set."""
    add_problem_arguments(parser, sets=False)
    parser.add_argument(
        "--records",
        metavar="FOLDER",
        required=True,
        help=(
            "folder of certify --output, with the same "
            "checkpoint and images; its records.jsonl takes the results (required)"
        ),
    )
    parser.add_argument(
        "--problem",
        metavar="FOLDER",
        required=True,
        help="folder of a set, written by export (required)",
    )
    parser.add_argument(
        "--results",
        metavar="PATH",
        required=True,
        help=(
            "log that alpha-beta-CROWN printed, a CSV "
            "file, or a folder of its result files, image_00000.txt and so on (required)"
        ),
    )


@guarded
def run_export(args: argparse.Namespace) -> None:
    """Write the problems, and print the commands that run them."""
    network, sets, data = problem_of(args)
    balls = [entry for entry in sets if has_radius(entry)]
    if len(balls) < len(sets):
        names = ", ".join(entry.name for entry in sets if not has_radius(entry))
        raise InvalidArgumentError(
            f"the checkpoint's sets {names}: alpha-beta-CROWN takes balls only; name the norms "
            "to export with --norms"
        )
    with in_words_of_flags(path="--records", certification="--records"):
        records = None if args.records is None else read_records(args.records)
        folders = export_problems(
            args.output,
            network.model,
            to_unit(data.x_test),
            data.y_test,
            balls,
            certification=records,
            time_limit=args.time_limit,
        )
    print(
        "run alpha-beta-CROWN's complete_verifier/abcrown.py in each of these folders (without a"
        " GPU: with --device cpu), keep what it prints, and read that with lirpa-multinorm import:"
    )
    for folder in folders:
        print(
            f"  cd {shlex.quote(str(folder))} && python .../abcrown.py --config config.yaml | tee"
            " log.txt"
        )
    if any((folder / RESULTS).is_dir() for folder in folders):
        print(
            "for the counterexample of an l_inf image that it falsifies, run that one by itself,"
            f" and import the folder {RESULTS}:"
        )
        print(
            "  python .../abcrown.py --config config.yaml --onnx_path ../model.onnx --vnnlib_path"
            f" IMAGE.vnnlib --save_adv_example --results_file {RESULTS}/IMAGE.txt"
        )


@guarded
def run_import(args: argparse.Namespace) -> None:
    """Take results into records, and print the accuracies."""
    network, _, data = problem_of(args)
    with in_words_of_flags(
        path="--records", folder="--records", problem="--problem", results="--results"
    ):
        result = import_results(
            args.records,
            args.problem,
            args.results,
            network.model,
            to_unit(data.x_test),
            data.y_test,
        ).summary()
    for title, share, counts in zip(result["sets"], result["certified"], result["counts"]):
        statuses = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        print(f"{title}: certified {share:.4f} ({statuses})")
    if len(result["sets"]) > 1:
        print(f"certified union {result['certified_union']:.4f} of {result['n']} images")
