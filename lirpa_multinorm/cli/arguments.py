"""What the commands share: the arguments of images and device, and the handling of errors."""

from __future__ import annotations

import argparse
import contextlib
import functools
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable

from ..data import NAMES, ImageData, default_data_dir, load
from ..errors import InvalidArgumentError, LirpaMultinormError
from ..training.preflight import check_device  # noqa: F401 - of use to every command

VALIDATION = " (validation split)"  # what ImageData.split adds to a name

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


class RenamedFlag(argparse.Action):
    """The old name of a flag, which works and prints a note on stderr that has the new name.

    Args:
        new: The new name.
        **options: Other arguments of :class:`argparse.Action`; ``dest`` is the new flag's.
    """

    def __init__(self, *, new: str, **options: Any) -> None:
        super().__init__(**{"default": argparse.SUPPRESS, "help": argparse.SUPPRESS, **options})
        self.new = new

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set the value of the new flag, and print the note."""
        print(f"note: {self.option_strings[0]} is now called {self.new}", file=sys.stderr)
        setattr(namespace, self.dest, values)


def guarded(function: Callable[..., None]) -> Callable[..., int]:
    """Turn package errors into one line on stderr and exit code 2, Ctrl-C or SIGTERM into 130."""

    @functools.wraps(function)
    def run(*args, **kwargs) -> int:
        """Return the exit code."""
        try:
            with _terminable():
                function(*args, **kwargs)
        except LirpaMultinormError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_ERROR
        except KeyboardInterrupt as interruption:
            kept = str(interruption) or (
                "the last checkpoint, finished rows and records of finished batches are kept; "
                "go on with the same command and --resume"
            )
            print(f"interrupted: {kept}", file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0

    return run


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, unless the process has a handler for it."""
    taken = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if taken:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if taken:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def in_words_of_flags(**flags: str) -> Iterator[None]:
    """Let errors of the package name the flag that gave an argument, not the argument.

    Args:
        **flags: The flag of each argument, such as ``name="--data"``.
    """
    try:
        yield
    except LirpaMultinormError as error:
        start = re.match(r"(\w+)([:=].*)", str(error), re.DOTALL)
        if start is None or start[1] not in flags:
            raise
        raise type(error)(flags[start[1]] + start[2]) from error


def add_data_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the arguments that name the images."""
    parser.add_argument(
        "--data",
        default=argparse.SUPPRESS,
        help=(
            f"{', '.join(NAMES)}, an .npz file with x_train, y_train, x_test, y_test, or an image "
            f"folder (default: {default})"
        ),
    )
    parser.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help=f"folder of downloaded data (default: {default_data_dir()})",
    )
    parser.add_argument(
        "--no-download",
        action="store_true",
        help="use what is on disk only (default: download what is missing)",
    )
    parser.add_argument(
        "--n-train",
        type=int,
        metavar="N",
        help="use the first images of the training set only (default: all)",
    )
    parser.add_argument(
        "--n-test", type=int, metavar="N", help="certify the first test images only (default: all)"
    )
    parser.add_argument(
        "--validation",
        type=int,
        metavar="N",
        help=(
            "certify N images held out of the training set "
            "instead of test images, to choose settings by (default: test images)"
        ),
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the device and of progress bars."""
    parser.add_argument(
        "--device", default="cpu", help="where to compute, such as cuda:0 (default: cpu)"
    )
    parser.add_argument(
        "--no-progress", action="store_true", help="show no progress bars (default: show them)"
    )


def loadable_name(trained_on: str) -> str:
    """Return the name of the data set that a checkpoint was trained on, if it can be loaded by it.

    Raises:
        InvalidArgumentError: It cannot, or there is none; say --data.
    """
    if trained_on in NAMES:
        return trained_on
    if not trained_on:
        raise InvalidArgumentError(
            "--data: the file does not say what it was trained on; name a data set or a file"
        )
    split = (
        " It leaves out images held for validation: also give --validation with their number."
        if trained_on.endswith(VALIDATION)
        else ""
    )
    raise InvalidArgumentError(
        f"--data: the checkpoint was trained on {trained_on!r}, which cannot be loaded by this "
        f"name; give the file, the folder or the name.{split}"
    )


def data_from(args: argparse.Namespace, default: str) -> ImageData:
    """Load the images that the arguments name."""
    with in_words_of_flags(
        name="--data",
        data_dir="--data-dir",
        n_train="--n-train",
        n_test="--n-test",
        n_validation="--validation",
    ):
        data = load(
            getattr(args, "data", default), data_dir=args.data_dir, download=not args.no_download
        )
        if args.validation is None:
            return data.subset(args.n_train, args.n_test)
        if args.n_test is not None:
            raise InvalidArgumentError(
                "--n-test and --validation contradict each other; with --validation no test "
                "image is used"
            )
        return data.split(args.validation).subset(args.n_train)
