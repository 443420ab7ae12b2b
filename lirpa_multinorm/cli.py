"""Command line: ``lirpa-multinorm train``, ``finetune``, ``presets`` and ``certify``."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import torch

from . import distributed
from .certification import CertifySettings, certify
from .data import ImageData, default_data_dir, load, to_unit
from .errors import InvalidArgumentError, LirpaMultinormError, OutputFolderError
from .experiment import MORE_ROWS, ROWS, Experiment, norm_name, shortened
from .io import ensure_writable, environment, write_json, writing
from .losses import accepts
from .presets import load_preset, preset_names
from .report import markdown_table
from .settings import SETTINGS, Settings, add_setting_arguments, config_of, given, merge, nested, sets_of, spec_of
from .training import TrainConfig, load_checkpoint
from .training.config import describe_sets

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
FINETUNE_SHARE = 0.2  # of the epochs of training from scratch, as in the paper
#: What ``train`` does without a preset: a small network on scikit-learn's digits.
DEFAULTS: Settings = {"data": "digits", "eps": {"inf": 0.1, "2": 0.4}, "model": {"name": "cnn_small"},
                      "train": {"epochs": 40, "batch_size": 64, "learning_rate": 2e-3, "milestones": [30, 36],
                                "loss_options": {"ratio_inf": 0.6},
                                "schedule": {"natural_epochs": 2, "anneal_epochs": 15}}}


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
            print("interrupted; the last whole epoch's checkpoint and the finished rows are kept: go on with --resume",
                  file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0
    return run


def add_data_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the arguments that say which images to use."""
    parser.add_argument("--data", default=argparse.SUPPRESS, help="digits, mnist, cifar10, tinyimagenet, an .npz file "
                        f"with x_train, y_train, x_test, y_test, or an image folder (default: {default})")
    parser.add_argument("--data-dir", help=f"folder of downloaded data (default: {default_data_dir()})")
    parser.add_argument("--no-download", action="store_true", help="use what is on disk only")
    parser.add_argument("--n-train", type=int, help="use the first images of the training set only")
    parser.add_argument("--n-test", type=int, help="certify the first test images only (default: all)")
    parser.add_argument("--validation", type=int, metavar="N", help="certify N images held out of the training set "
                        "instead of test images, to choose settings by")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of training that are no settings of the result."""
    parser.add_argument("--output", required=True, help="folder for checkpoints, logs and the table")
    parser.add_argument("--resume", action="store_true", help="go on with what the output folder holds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="train with each and report means")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--timeout", type=float, default=distributed.TIMEOUT_SECONDS,
                        help="seconds to wait for other processes (torchrun; default: %(default)s)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def add_train_arguments(parser: argparse.ArgumentParser, default: Settings) -> None:
    """Add everything that ``train`` and the examples understand."""
    add_data_arguments(parser, default["data"])
    parser.add_argument("--preset", help="a recipe of the paper or ours, by name (lirpa-multinorm presets lists them)")
    parser.add_argument("--released", action="store_true", help="train as the paper's released code does")
    parser.add_argument("--methods", nargs="+", choices=[*ROWS, *MORE_ROWS], metavar="METHOD",
                        help=f"rows of the table (default: {', '.join(ROWS)}; also: {'; '.join(MORE_ROWS)})")
    parser.add_argument("--initial", type=Path, help="weights to start from: a checkpoint, or a plain state dict")
    add_run_arguments(parser)
    add_setting_arguments(parser.add_argument_group("settings", "each overrides the preset or the defaults"))


def data_from(args: argparse.Namespace, default: str) -> ImageData:
    """Load the images the arguments ask for."""
    data = load(getattr(args, "data", default), data_dir=args.data_dir, download=not args.no_download)
    if args.validation is None:
        return data.subset(args.n_train, args.n_test)
    if args.n_test is not None:
        raise InvalidArgumentError("--n-test and --validation contradict each other; with --validation no test image "
                                   "is used")
    return data.split(args.validation).subset(args.n_train)


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


# --- training -----------------------------------------------------------------------------------------------------

def rows_and_settings(args: argparse.Namespace, default: Settings) -> tuple:
    """Return the rows to train and the settings: defaults or preset, then flags."""
    flags = given(args)
    if args.preset is None:
        if args.released:
            raise InvalidArgumentError("--released needs --preset: it selects the released code's version of a recipe")
        base, rows = default, {name: {**ROWS, **MORE_ROWS}[name] for name in args.methods or ROWS}
    else:
        if args.methods:
            raise InvalidArgumentError(f"--preset {args.preset} and --methods contradict each other: a preset is one "
                                       "method; leave one of them out")
        preset = load_preset(args.preset, args.released)
        if preset.initial is not None and args.initial is None:
            raise InvalidArgumentError(f"--preset {args.preset} starts from a trained network; train --preset "
                                       f"{preset.initial} and give its checkpoint with --initial")
        base = preset.settings()
        rows = {args.preset: {"loss": preset.train.loss}}
    _check_flags(flags, rows, base)
    common = flags if base["train"].get("projection") else {path: value for path, value in flags.items()
                                                             if not path.startswith("train.projection.")}
    return {name: _overridden(row, flags) for name, row in rows.items()}, merge(base, nested(common))


def _overridden(row: Mapping[str, Any], flags: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a row in which flags replace what the row itself says."""
    said = {name: value for name, value in nested(flags).get("train", {}).items() if name in row}
    if "loss_options" in said:
        said["loss_options"] = {name: value for name, value in said["loss_options"].items()
                                if accepts(row["loss"], name)}
    return merge(row, said)


def _check_flags(flags: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]], settings: Settings) -> None:
    """Refuse flags that none of the rows could use."""
    losses, words = [row["loss"] for row in rows.values()], {one.path: one.flag for one in SETTINGS}
    for path in flags:
        if path.startswith("train.loss_options.") and not any(accepts(loss, path.split(".")[2]) for loss in losses):
            raise InvalidArgumentError(f"{words[path]}: no method asked for has this option "
                                       f"({', '.join(dict.fromkeys(losses))}); leave it out")
    if "train.projection.beta" in flags and not any(
            row.get("projection") or (settings["train"].get("projection") and loss != "natural")
            for row, loss in zip(rows.values(), losses)):
        raise InvalidArgumentError("--beta: no method asked for projects gradients; leave it out")


def experiment_from(args: argparse.Namespace, settings: Settings, spec=None) -> Experiment:
    """Build the experiment that settings and arguments describe."""
    check_device(args.device)
    data = data_from(args, settings["data"])
    return Experiment(data, spec or spec_of(settings["model"], data), sets_of(settings["eps"]),
                      config_of(settings["train"]), device=args.device, seeds=args.seeds, initial=args.initial)


def train_and_report(args: argparse.Namespace, experiment: Experiment, rows: Dict[str, Dict[str, Any]]) -> None:
    """Train and certify, print the table and say where everything is."""
    with distributed.process_group(args.device, args.timeout):
        table = experiment.run(args.output, rows, not args.no_progress, args.resume)
    if table:
        print(f"\n{(Path(args.output) / 'table.md').read_text(encoding='utf-8')}")
        print(f"table, figure, checkpoints and logs: {args.output} (table.json, table.md, table.png)")


@guarded
def run_training(args: argparse.Namespace, default: Settings = DEFAULTS) -> None:
    """Train and certify what the arguments ask for."""
    rows, settings = rows_and_settings(args, default)
    train_and_report(args, experiment_from(args, settings), rows)


def run_example(description: str, default: Settings) -> int:
    """Parse the command line of an example with its own defaults, and run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_train_arguments(parser, default)
    return run_training(parser.parse_args(), default)


def add_finetune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what fine-tuning understands."""
    parser.add_argument("initial", type=Path, metavar="CHECKPOINT",
                        help="checkpoint of this package, or a plain state dict (then say --model, --data and radii)")
    add_data_arguments(parser, "digits")
    add_run_arguments(parser)
    add_setting_arguments(parser.add_argument_group("settings", "each overrides the checkpoint's"))


@guarded
def run_finetuning(args: argparse.Namespace) -> None:
    """Fine-tune a network for the union of norms: Max with bound alignment, eta 0.5, a fifth of the epochs."""
    flags, settings, spec, config = given(args), DEFAULTS, None, TrainConfig()
    try:
        checkpoint = load_checkpoint(args.initial)
    except LirpaMultinormError:
        pass  # a plain state dict; what is wrong with it otherwise is said when it is loaded
    else:
        spec, config = checkpoint.spec, checkpoint.config
        settings = merge(settings, {"eps": {str(one.norm): one.eps for one in checkpoint.perturbations}})
        if any(path.startswith("model.") for path in flags):
            raise InvalidArgumentError("--model and --width: the checkpoint says which network it is; leave them out")
    kept = {name: value for name, value in config.loss_options.items() if accepts("cure", name)}
    train = dict(shortened(config, FINETUNE_SHARE).to_dict(), loss="cure", loss_options={"eta": 0.5, **kept},
                 projection=None)
    settings = merge(dict(settings, train=train), nested(flags))
    rows = {"Finetune": {"loss": "cure"}}
    _check_flags(flags, rows, settings)
    train_and_report(args, experiment_from(args, settings, spec), rows)


def finetune_example(description: str) -> int:
    """Parse the command line of the fine-tuning example, and run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_finetune_arguments(parser)
    return run_finetuning(parser.parse_args())


def run_presets(_: argparse.Namespace) -> int:
    """Print the presets' names and titles; returns the exit code."""
    print(markdown_table([{"preset": name, "title": load_preset(name).title} for name in preset_names()],
                         ["preset", "title"]))
    return 0


# --- certification ------------------------------------------------------------------------------------------------

@guarded
def run_certification(args: argparse.Namespace) -> None:
    """Certify a checkpoint, print the accuracies and write them as JSON if asked to."""
    if args.output:
        check_output_file(Path(args.output))
    checkpoint = load_checkpoint(args.checkpoint)
    sets = sets_of(nested(given(args)).get("eps", {})) or checkpoint.perturbations
    data = data_from(args, "digits")
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
        with writing(args.output):
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
    training = commands.add_parser("train", help="train a preset, or losses side by side, and certify")
    add_train_arguments(training, DEFAULTS)
    training.set_defaults(run=run_training)
    finetuning = commands.add_parser("finetune", help="fine-tune a single-norm network for the union of norms")
    add_finetune_arguments(finetuning)
    finetuning.set_defaults(run=run_finetuning)
    commands.add_parser("presets", help="list the recipes").set_defaults(run=run_presets)
    certification = commands.add_parser("certify", help="certify a checkpoint against one norm or a union of norms")
    certification.add_argument("checkpoint", help="file written by training (checkpoint.pt)")
    add_data_arguments(certification, "digits")
    add_setting_arguments(certification, ["eps."])
    certification.add_argument("--batch-size", type=int, default=50)
    certification.add_argument("--seed", type=int, default=0)
    certification.add_argument("--output", help="JSON file for the result")
    certification.add_argument("--no-progress", action="store_true")
    certification.set_defaults(run=run_certification)
    args = parser.parse_args(arguments)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
