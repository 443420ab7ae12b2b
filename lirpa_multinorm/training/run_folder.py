"""The folder of a run: a single process writes it, and its files identify the run."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InvalidArgumentError, OutputFolderError
from ..utils import distributed
from ..utils.environment import environment
from ..utils.files import exclusive, plain, remove_leftovers, write_json, writing
from .config import TrainConfig

CHECKPOINT, CONFIG, TENSORBOARD = "checkpoint.pt", "config.json", "tensorboard"
#: Files that make a folder one that holds a run.
_OF_A_RUN = (CHECKPOINT, "result.json", "table.json", "log.jsonl", CONFIG)
#: What is removed with a run, in this order: config.json, which says whose the others are, is the
#: last to go.
_FILES = (
    CHECKPOINT,
    "result.json",
    "table.json",
    "table.md",
    "table.png",
    "log.jsonl",
    "curves.png",
)
_LENGTHS = (
    "train.schedule.natural_epochs: ",
    "train.schedule.anneal_epochs: ",
    "train.milestones: ",
    "train.average_from: ",
)
_REMEDIES = "go on with it by --resume (resume=True), replace it by --overwrite (overwrite=True)"


def check_choices(resume: bool, overwrite: bool, extend: bool) -> None:
    """Raise InvalidArgumentError where the flags for a folder's run contradict each other."""
    if resume and overwrite:
        raise InvalidArgumentError(
            "overwrite: --resume (resume=True) goes on with the folder's run and --overwrite "
            "(overwrite=True) removes it; give only one of them"
        )
    if extend and not resume:
        raise InvalidArgumentError(
            "extend: --extend (extend=True) gives more epochs to a run that is resumed; give "
            "--resume (resume=True) too, or leave it out"
        )


@contextlib.contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Keep other processes from a run's folder for the block.

    Of the processes of one run the first holds the lock.

    Raises:
        OutputFolderError: Another process has a run there just now.
        ProcessGroupError: In the other processes of a group whose first one was refused.
    """
    with contextlib.ExitStack() as stack:
        with distributed.failing_together():
            if not distributed.rank():
                try:
                    stack.enter_context(exclusive(folder / "run"))
                except OutputFolderError as error:
                    raise OutputFolderError(
                        f"output: another process has a run in the folder {str(folder)!r} at this"
                        " moment, or it cannot be locked. Give another folder; or wait until that"
                        f" run has ended, and then {_REMEDIES}"
                    ) from error
        yield


class RunFolder:
    """The folder of a run that it holds already, or that will be written to it.

    Every file of the run names its identity, ``run_sha256``: the SHA-256 of its settings, its
    data's SHA-256 and this package's version as they were when it began. It stays the same when the
    run is resumed or given more epochs.

    Args:
        path: The folder; it exists and is locked by :func:`occupied`.
        settings: What the run is made of, as plain data; ``train`` holds a training configuration.
        resume: Whether to go on with the run that is there.
        overwrite: Whether to replace it, when :meth:`begin` is called.
        extend: Whether a run that is there may have fewer epochs; the rest must agree.

    Raises:
        OutputFolderError: The folder holds a run, and neither ``resume`` nor ``overwrite`` is asked
            for; or the run to resume has other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        extend: bool = False,
    ) -> None:
        self.path, self.extend, self.overwrite = path, extend, overwrite
        self.settings: dict[str, Any] = plain(settings)
        self.identity = identity_of(self.settings)
        self.continuations: list[dict] = []
        with distributed.failing_together():
            if not (resume or overwrite) and not distributed.rank():
                self._refuse_any_run()

    # --- the run that is there --------------------------------------------------------------------

    def holds_run(self) -> list[str]:
        """Return the names of the files that make this a folder with a run."""
        return [name for name in _OF_A_RUN if (self.path / name).exists()]

    def _refuse_any_run(self) -> None:
        """Raise OutputFolderError where the folder holds a run."""
        files = self.holds_run()
        if files:
            raise OutputFolderError(
                f"output: the folder {str(self.path)!r} holds a run already ({', '.join(files)}); "
                f"{_REMEDIES}, or give another folder"
            )

    def described(self) -> dict[str, Any] | None:
        """Return the content of config.json, see :func:`described_run`."""
        return described_run(self.path)

    def check(self, recorded: dict[str, Any] | None) -> None:
        """Raise OutputFolderError for a run of other settings, or whose settings are unknown.

        Args:
            recorded: Settings of the folder's run, with its identity if it has one; None where no
                file has them.
        """
        if recorded is None:
            if self.holds_run():
                raise OutputFolderError(
                    f"resume: nothing in the folder {str(self.path)!r} tells which run it holds "
                    f"({', '.join(self.holds_run())}, but no {CONFIG} that can be read); replace "
                    "it by --overwrite (overwrite=True), or give another folder"
                )
            return
        # A run is not a comparison of runs.
        names = {*self.settings, *({"comparison"} & recorded.keys())}
        changes = differences(plain({name: recorded.get(name) for name in names}), self.settings)
        longer = recorded["train"]["epochs"] < self.settings["train"]["epochs"]
        others = [
            change for change in changes if not (longer and change.startswith("train.epochs: "))
        ]
        if others or (changes and not self.extend):
            # Lengths follow --epochs.
            only_lengths = longer and all(change.startswith(_LENGTHS) for change in others)
            more = ""
            if only_lengths and not self.extend:
                more = "train it further by --resume --extend (extend=True), "
            raise OutputFolderError(
                f"resume: the run in {str(self.path)!r} has other settings: {'; '.join(changes)}. "
                f"Give the same ones to go on with it, {more}replace it by --overwrite "
                "(overwrite=True), or give another output folder"
            )

    def take_over(self, run: dict[str, Any], described: dict[str, Any] | None) -> None:
        """Keep the identity of the run that goes on, with a warning for another version's run.

        Args:
            run: The run's identity in the checkpoint; empty in those of older versions.
            described: The result of :meth:`described`.
        """
        names = {
            content["run_sha256"] for content in (run, described or {}) if "run_sha256" in content
        }
        if len(names) > 1:
            raise OutputFolderError(
                f"resume: in the folder {str(self.path)!r} {CHECKPOINT} and {CONFIG} are of two "
                f"runs (run_sha256 {' and '.join(sorted(names))}); put back the file that was "
                "moved, replace both by --overwrite (overwrite=True), or give another folder"
            )
        version = self.identity["version"]
        if run and run.get("version") != version:
            warnings.warn(
                f"resume: the run in {str(self.path)!r} was begun by version {run.get('version')}"
                f" of this package and goes on with {version}; its numbers may differ from an"
                " uninterrupted run's",
                stacklevel=2,
            )
        if run:
            self.identity = {name: run.get(name, value) for name, value in self.identity.items()}
            self.continuations = list(run.get("continuations") or [])

    def note_extension(self, epochs: int, **more: Any) -> None:
        """Record that a run which was to have fewer epochs goes on, if it is one."""
        new = self.settings["train"]["epochs"]
        if epochs < new:
            time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            self.continuations.append({**more, "epochs": epochs, "new_epochs": new, "time": time})

    # --- this run ---------------------------------------------------------------------------------

    def begin(self, device: str = "cpu", **more: Any) -> None:
        """Remove what is to be overwritten, and write config.json, the first file of a run.

        Args:
            device: Where the run's work is done, for the description of the machine.
            **more: What else config.json is to say.
        """
        remove_leftovers(self.path)
        if self.overwrite:
            with writing(self.path):
                remove_run(self.path)
        with writing(self.path / CONFIG):
            write_json(
                self.path / CONFIG,
                {
                    **self.settings,
                    **self.identity,
                    **more,
                    "continuations": self.continuations,
                    "environment": environment(device),
                    "processes": distributed.world_size(),
                },
            )


def described_run(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's config.json, with defaults for settings that it lacks.

    None if it cannot be read.
    """
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return dict(content, train=plain(TrainConfig.from_dict(content["train"]).to_dict()))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def remove_run(folder: Path) -> None:
    """Delete the files of a run and nothing else.

    A process killed half-way leaves config.json, which identifies the run.
    """
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for events in (folder / TENSORBOARD).glob("events.out.tfevents.*"):
        events.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is none, or it holds something else
        (folder / TENSORBOARD).rmdir()
    (folder / CONFIG).unlink(missing_ok=True)


def identity_of(settings: dict[str, Any]) -> dict[str, str]:
    """Return the identity of a run that begins now: ``run_sha256`` and this package's version."""
    version = import_module(__name__.partition(".")[0]).__version__
    text = json.dumps({"settings": plain(settings), "version": version}, sort_keys=True)
    return {"run_sha256": hashlib.sha256(text.encode()).hexdigest(), "version": version}


def differences(old: dict, new: dict, path: str = "") -> list[str]:
    """Return "name: old -> new" for every leaf in which two nested dicts differ."""
    changes = []
    for name in sorted({**old, **new}, key=str):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += differences(before, after, f"{path}{name}.")
        elif before != after:
            changes.append(f"{path}{name}: {before!r} -> {after!r}")
    return changes


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of some tensors' values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
