"""The log of a training run: JSON lines, TensorBoard where it is installed, curves at the end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError, OutputFolderError
from ..report import has_curves, learning_curves
from ..utils.files import append_jsonl, plain, write_text


class RunLog:
    """One line per epoch in ``log.jsonl``, the same in TensorBoard, and ``curves.png`` when closed.

    Args:
        folder: Folder of the run; it is made with the first line.
        title: Heading of the curves; ``None`` takes the folder's name.
        tensorboard: Whether to write ``folder/tensorboard`` too, where ``torch.utils.tensorboard``
            can be imported.

    Example:
        >>> import tempfile
        >>> with RunLog(tempfile.mkdtemp(), tensorboard=False) as log:
        ...     for epoch in (1, 2, 3):
        ...         log.append({"epoch": epoch, "natural_loss": 1 / epoch})
        ...     log.keep(2)
        ...     log.lines()[-1]
        {'epoch': 2, 'natural_loss': 0.5}
        >>> sorted(path.name for path in log.folder.iterdir())
        ['curves.png', 'log.jsonl']
    """

    def __init__(
        self, folder: str | os.PathLike, title: str | None = None, tensorboard: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.title = self.folder.resolve().name if title is None else title
        self._wanted = tensorboard
        self._writer: Any = None
        self._purge_step: int | None = None

    @property
    def path(self) -> Path:
        """The file of JSON lines."""
        return self.folder / "log.jsonl"

    def append(self, line: Mapping[str, Any]) -> None:
        """Write an epoch's line; it is on disk when this returns.

        Args:
            line: ``epoch`` (counted from 1) and whatever else is known; its numbers go to
                TensorBoard.

        Raises:
            InvalidArgumentError: If ``epoch`` is no whole number, or JSON cannot express a value.
            OutputFolderError: If the line cannot be written.
        """
        epoch = line.get("epoch")
        if not isinstance(epoch, int) or isinstance(epoch, bool):
            raise InvalidArgumentError(
                f"line: its 'epoch' is {epoch!r}. Pass the epoch's number, counted from 1."
            )
        with self._writing(self.path):
            append_jsonl(self.path, dict(line))
        with self._writing(self.folder / "tensorboard"):
            self._open_tensorboard()
            if self._writer is not None:
                for key, value in _scalars(line):
                    self._writer.add_scalar(key, value, epoch)
                self._writer.flush()

    def keep(self, epochs: int) -> None:
        """Drop the lines after an epoch, and a line that a killed run has left half-written.

        To be called before a run goes on from a checkpoint (``epochs`` done) or starts anew (0).

        Args:
            epochs: The last epoch to keep.

        Raises:
            OutputFolderError: If the file cannot be written; it is then left as it was.
        """
        self._close_tensorboard()
        self._purge_step = epochs + 1
        if self.path.exists():
            with self._writing(self.path):
                kept = [text for text, line in self._parsed() if line["epoch"] <= epochs]
                write_text(self.path, "".join(text + "\n" for text in kept))

    def lines(self) -> list[dict]:
        """Return the complete lines, in their order.

        A line that a killed run has left half-written is left out.
        """
        return [line for _, line in self._parsed()]

    def close(self) -> None:
        """Draw ``curves.png`` if there is anything to draw, and close TensorBoard.

        May be called again.

        Raises:
            OutputFolderError: If the figure cannot be written.
        """
        self._close_tensorboard()
        lines = self.lines()
        if has_curves(lines):
            with self._writing(self.folder / "curves.png"):
                learning_curves(lines, self.folder / "curves.png", self.title)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _parsed(self) -> Iterator[tuple[str, dict]]:
        """Yield the complete lines as texts and as dicts."""
        if not self.path.exists():
            return
        *lines, _ = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        for text in lines:
            with contextlib.suppress(ValueError):  # the half of a line, ended by the next run
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("epoch"), int):
                    yield text, line

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Name the file in errors of the system."""
        try:
            yield
        except OSError as error:
            raise OutputFolderError(
                f"output: cannot write {str(path)!r} ({error.strerror or error}). Free some space"
                " or make the folder writable, then go on from the last checkpoint, or choose"
                " another folder."
            ) from error

    def _open_tensorboard(self) -> None:
        """Open TensorBoard's file, if it is asked for and installed."""
        if self._writer is not None or not self._wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        # It is not installed, or at odds with its dependencies, which shows as any error.
        except Exception:
            self._wanted = False
            return
        # purge_step hides what an earlier run has written from that epoch on.
        self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge_step)

    def _close_tensorboard(self) -> None:
        with self._writing(self.folder / "tensorboard"):
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield a line's finite numbers except the epoch, also those in tensors of one element."""
    for key, value in line.items():
        value = plain(value)
        if key != "epoch" and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value
