"""Command line: ``lirpa-multinorm train`` and ``lirpa-multinorm certify``."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Callable, List, Optional, Sequence

import torch

from .certification import CertifySettings, certify
from .data import ImageData, default_data_dir, load, to_unit
from .errors import InvalidArgumentError, LirpaMultinormError, OutputFolderError
from .experiment import ROWS, Experiment, norm_name
from .io import ensure_writable, environment, write_json
from .perturbations import PerturbationL2Box, PerturbationLinf, PerturbationLpBox
from .report import markdown_table
from .training import ModelSpec, Schedule, TrainConfig, load_checkpoint
from .training.config import describe_sets

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def guarded(function: Callable[..., None]) -> Callable[..., int]:
    """Turn the package's errors into one line on stderr and exit code 2, and Ctrl-C into 130."""
    @functools.wraps(function)
    def run(*args, **kwargs) -> int:
        """Return the exit code."""
        try:
            function(*args, **kwargs)
        except LirpaMultinormError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_ERROR
        except KeyboardInterrupt:
            print("interrupted; the last whole epoch's checkpoint and the finished rows are kept", file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0
    return run


def add_data_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the arguments that say which images to use."""
    parser.add_argument("--data", default=default, help="digits, mnist, cifar10, or an .npz file with x_train, "
                        "y_train, x_test, y_test (default: %(default)s)")
    parser.add_argument("--data-dir", help=f"folder of downloaded data (default: {default_data_dir()})")
    parser.add_argument("--no-download", action="store_true", help="use what is on disk only")
    parser.add_argument("--n-train", type=int, help="use the first images of the training set only")
    parser.add_argument("--n-test", type=int, help="certify the first test images only (default: all)")


def add_set_arguments(parser: argparse.ArgumentParser, eps_inf: Optional[float], eps_2: Optional[float]) -> None:
    """Add the radii of the sets."""
    parser.add_argument("--eps-inf", type=float, default=eps_inf, help="l_inf radius (default: %(default)s)")
    parser.add_argument("--eps-2", type=float, default=eps_2, help="l_2 radius (default: %(default)s)")


def add_train_arguments(parser: argparse.ArgumentParser, model: str, config: TrainConfig) -> None:
    """Add the arguments of training; the defaults come from ``config``."""
    options = config.loss_options
    parser.add_argument("--output", required=True, help="folder for checkpoints, logs and the table")
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="METHOD",
                        help=f"rows of the table, among: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--model", default=model, help="network (default: %(default)s)")
    parser.add_argument("--width", type=int, help="channels or units of the first layer")
    parser.add_argument("--epochs", type=int, default=config.epochs)
    parser.add_argument("--batch-size", type=int, default=config.batch_size)
    parser.add_argument("--learning-rate", type=float, default=config.learning_rate)
    parser.add_argument("--milestones", type=int, nargs="*", default=list(config.milestones))
    parser.add_argument("--natural-epochs", type=float, default=config.schedule.natural_epochs)
    parser.add_argument("--anneal-epochs", type=float, default=config.schedule.anneal_epochs)
    parser.add_argument("--l1", type=float, default=config.l1)
    parser.add_argument("--ratio-inf", type=float, default=options.get("ratio_inf", 0.4), help="SABR's lambda")
    parser.add_argument("--ratio-2", type=float, default=options.get("ratio_2", 1e-5), help="CURE's lambda_2")
    parser.add_argument("--region-2", default=options.get("region_2", "box"), choices=["box", "ball"],
                        help="region propagated for l_2: the paper's box, or the small l_2 ball")
    parser.add_argument("--augment", action="store_true", default=config.augment, help="flip and shift images")
    parser.add_argument("--seed", type=int, default=config.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def data_from(args: argparse.Namespace) -> ImageData:
    """Load the images the arguments ask for."""
    data = load(args.data, data_dir=args.data_dir, download=not args.no_download)
    return data.subset(args.n_train, args.n_test)


def sets_from_radii(args: argparse.Namespace) -> List[PerturbationLpBox]:
    """Return the sets of the radii given, l_inf first."""
    sets = []
    if args.eps_inf is not None:
        sets.append(PerturbationLinf(args.eps_inf))
    if args.eps_2 is not None:
        sets.append(PerturbationL2Box(args.eps_2))
    return sets


def check_device(device: str) -> None:
    """Raise InvalidArgumentError unless tensors can be made on a device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise InvalidArgumentError(f"device={device!r} cannot be used ({str(error).splitlines()[0]}); "
                                   "use --device cpu, or cuda where torch finds a GPU") from error


def check_output_file(path: Path) -> None:
    """Raise an error unless a file can be written, before the work it shall hold starts."""
    if path.is_dir():
        raise OutputFolderError(f"output: {str(path)!r} is a folder; name a file in it, such as result.json")
    ensure_writable(path.parent)


def experiment_from(args: argparse.Namespace) -> Experiment:
    """Build the experiment that parsed arguments describe."""
    check_device(args.device)
    data = data_from(args)
    options = {} if args.width is None else {"width": args.width}
    spec = ModelSpec(args.model, data.in_shape, data.num_classes, data.mean, data.std, options)
    config = TrainConfig(loss_options={"ratio_inf": args.ratio_inf, "ratio_2": args.ratio_2,
                                       "region_2": args.region_2},
                         epochs=args.epochs, batch_size=args.batch_size, learning_rate=args.learning_rate,
                         milestones=tuple(args.milestones), l1=args.l1, augment=args.augment, seed=args.seed,
                         schedule=Schedule(args.natural_epochs, args.anneal_epochs))
    return Experiment(data, spec, sets_from_radii(args), config, device=args.device)


@guarded
def run_training(args: argparse.Namespace) -> None:
    """Train and certify the methods asked for, print the table and say where everything is."""
    experiment = experiment_from(args)
    rows = {name: ROWS[name] for name in args.methods}
    table = experiment.run(args.output, rows, progress=not args.no_progress)
    print()
    print(markdown_table(table, list(table[0])))
    print(f"\ntable, figure, checkpoints and logs: {args.output} (table.json, table.md, table.png)")


def run_example(description: str, data: str, eps_inf: float, eps_2: float, model: str, config: TrainConfig) -> int:
    """Parse the command line of an example with its own defaults, and run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, data)
    add_set_arguments(parser, eps_inf, eps_2)
    add_train_arguments(parser, model, config)
    return run_training(parser.parse_args())


@guarded
def run_certification(args: argparse.Namespace) -> None:
    """Certify a checkpoint, print the accuracies and write them as JSON if asked to."""
    if args.output:
        check_output_file(Path(args.output))
    checkpoint = load_checkpoint(args.checkpoint)
    sets = sets_from_radii(args) or checkpoint.perturbations
    data = data_from(args)
    if tuple(checkpoint.spec.in_shape) != data.in_shape:
        raise InvalidArgumentError(f"data {data.name!r} has images {data.in_shape}; the checkpoint's model takes "
                                   f"{tuple(checkpoint.spec.in_shape)}. Choose the data it was trained on")
    settings = CertifySettings(batch_size=args.batch_size, seed=args.seed)
    found = certify(checkpoint.model, to_unit(data.x_test), data.y_test, sets, settings, not args.no_progress).summary()
    row = {"n": found["n"], "clean": found["clean"]}
    for one, share in zip(sets, found["certified"]):
        row[f"certified {norm_name(one)} {one.eps:g}"] = share
    row.update({"certified union": found["certified_union"], "attacked union": found["attacked_union"]})
    print(markdown_table([row], list(row), formats={name: ".4f" for name in row if name != "n"}))
    if args.output:
        write_json(args.output, {"checkpoint": str(args.checkpoint), "data": data.name, "result": found,
                                 "perturbations": describe_sets(sets), "environment": environment()})


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: Command-line arguments; None reads them from the process.

    Returns:
        0, or 2 after an error of the user's, or 130 after an interruption.
    """
    parser = argparse.ArgumentParser(prog="lirpa-multinorm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train losses side by side and certify them")
    add_data_arguments(training, "digits")
    add_set_arguments(training, 0.1, 0.5)
    add_train_arguments(training, "cnn_small", TrainConfig())
    training.set_defaults(run=run_training)
    certification = commands.add_parser("certify", help="certify a checkpoint against one norm or a union of norms")
    certification.add_argument("checkpoint", help="file written by training (checkpoint.pt)")
    add_data_arguments(certification, "digits")
    add_set_arguments(certification, None, None)
    certification.add_argument("--batch-size", type=int, default=50)
    certification.add_argument("--seed", type=int, default=0)
    certification.add_argument("--output", help="JSON file for the result")
    certification.add_argument("--no-progress", action="store_true")
    certification.set_defaults(run=run_certification)
    args = parser.parse_args(arguments)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
