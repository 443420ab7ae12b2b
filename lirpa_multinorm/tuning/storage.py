"""The study file: trials that several processes share, and go on with after a kill."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from ..errors import MissingPackageError, OutputFolderError
from ..training.run_folder import differences
from ..utils.files import ensure_writable, exclusive, plain
from .space import Dimension

STUDY, TRIALS = "study.journal", "trials"
_NAME, _SETTINGS = "lirpa-multinorm", "settings"
#: Trials that are drawn at random before the sampler learns from them.
_RANDOM = 8


def import_optuna() -> Any:
    """Return the module optuna, which says nothing of its own.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise MissingPackageError(
            "tune needs optuna, which cannot be imported; run: pip install lirpa-multinorm[tune]"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Claim(NamedTuple):
    """A trial that this process runs.

    Args:
        number: Its number.
        values: Values of the settings, by path.
        folder: Its folder.
    """

    number: int
    values: dict[str, Any]
    folder: Path


class _SystemLock:
    """The lock of the study file, which the system releases when a process dies."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path.with_name(f".{path.name}.append.lock"))

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


class StudyFile:
    """A study's file in its folder, opened by any number of processes.

    Args:
        folder: The study's folder.
        seed: Of the sampler.
    """

    def __init__(self, folder: str | Path, seed: int = 0) -> None:
        self.optuna = import_optuna()
        self.folder, self.seed = Path(folder).expanduser(), seed
        self.path = self.folder / STUDY
        self._study: Any = None

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes of the study from the block; waits for them."""
        return exclusive(self.path, wait=True)

    def begin(
        self, settings: Mapping[str, Any], space: Sequence[Dimension], first: Mapping[str, Any]
    ) -> None:
        """Begin the study, or join the one that is there.

        Args:
            settings: What it is made of, as plain data.
            space: The dimensions.
            first: Values of the first trial, by path; what is missing is drawn.

        Raises:
            OutputFolderError: The folder cannot be written, the file cannot be read, or it is of
                other settings, such as another search space.
        """
        ensure_writable(self.folder)
        (self.folder / TRIALS).mkdir(exist_ok=True)
        self.space = list(space)
        with self.locked():
            recorded = self.settings() if self.path.is_file() else None
            if recorded is None:
                self._open(create=True)
                self._study.set_user_attr(_SETTINGS, plain(dict(settings)))
                self._study.enqueue_trial(dict(first))
                return
        changes = differences(recorded, plain(dict(settings)))
        if changes:
            raise OutputFolderError(
                f"output: the study in {str(self.folder)!r} has other settings: "
                f"{'; '.join(changes)}. Give the same flags to go on with it, or another folder"
            )

    def settings(self) -> dict[str, Any] | None:
        """Return what the study in the folder is made of; None where none has begun.

        Raises:
            OutputFolderError: There is a file that cannot be read.
        """
        try:
            self._open(create=False)
        except KeyError:  # a process was killed before it had begun the study
            return None
        return self._study.user_attrs.get(_SETTINGS)

    def _open(self, create: bool) -> None:
        """Open the file."""
        lock = _SystemLock(self.path)
        _cut_half_a_line(self.path, lock)
        journal = self.optuna.storages.journal
        try:
            storage = self.optuna.storages.JournalStorage(
                journal.JournalFileBackend(str(self.path), lock_obj=lock)
            )
            self._study = (
                self.optuna.create_study(
                    storage=storage,
                    study_name=_NAME,
                    directions=["maximize", "maximize"],
                    load_if_exists=True,
                )
                if create
                else self.optuna.load_study(storage=storage, study_name=_NAME)
            )
        except KeyError:
            raise
        except Exception as error:  # optuna raises many kinds on a damaged file
            raise OutputFolderError(
                f"output: the study file {str(self.path)!r} cannot be read "
                f"({type(error).__name__}: {error}); it is damaged or no study of this package. "
                "Give another folder"
            ) from error

    @contextlib.contextmanager
    def claimed(self, trials: int) -> Iterator[Claim | None]:
        """Take the next trial, or one that a killed process has left; no other process takes it.

        Args:
            trials: How many trials the study has, of all processes together.

        Yields:
            The trial; None where all have been begun.
        """
        with contextlib.ExitStack() as stack:
            with self.locked():
                number = self._left_behind(stack)
                if number is None and self._begun() < trials:
                    number = self._asked()
                    stack.enter_context(self._holding(number))
                values = {} if number is None else self._values(number)
            yield None if number is None else Claim(number, values, self.trial_folder(number))

    def _left_behind(self, stack: contextlib.ExitStack) -> int | None:
        """Return a trial whose process has died, and hold it; None where there is none."""
        state = self.optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            with contextlib.ExitStack() as trial_stack:
                try:
                    trial_stack.enter_context(self._holding(trial.number))
                except OutputFolderError:  # another process is at work on it
                    continue
                if len(trial.params) < len(self.space):  # killed while it was asked for
                    self._study.tell(trial.number, state=state.FAIL)
                    continue
                stack.push(trial_stack.pop_all())
                return trial.number
        return None

    def _holding(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Hold a trial; the system's lock is released when the process dies."""
        return exclusive(self.trial_folder(number))

    def _begun(self) -> int:
        """Return how many trials have been begun, without those that have no values."""
        trials = self._study.get_trials(deepcopy=False)
        waiting = self.optuna.trial.TrialState.WAITING
        return sum(
            trial.state != waiting and len(trial.params) == len(self.space) for trial in trials
        )

    def _asked(self) -> int:
        """Return the number of a new trial, whose values are drawn."""
        number = len(self._study.get_trials(deepcopy=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the liar is called experimental by older versions
            self._study.sampler = self.optuna.samplers.TPESampler(
                n_startup_trials=_RANDOM, seed=self.seed + number, constant_liar=True
            )
            return self._study.ask(self._distributions()).number

    def _distributions(self) -> dict[str, Any]:
        """Return the space in optuna's words."""
        kinds = self.optuna.distributions

        def of(dimension: Dimension) -> Any:
            """Return a dimension's distribution."""
            if dimension.choices:
                return kinds.CategoricalDistribution(dimension.choices)
            kind: Callable[..., Any] = (
                kinds.IntDistribution if dimension.whole else kinds.FloatDistribution
            )
            return kind(dimension.low, dimension.high, log=dimension.log)

        return {dimension.path: of(dimension) for dimension in self.space}

    def _values(self, number: int) -> dict[str, Any]:
        """Return a trial's values by path, in the order of the space."""
        params = self._study.get_trials(deepcopy=False)[number].params
        return {dimension.path: params[dimension.path] for dimension in self.space}

    def tell(self, number: int, objectives: Sequence[float] | None) -> None:
        """Record a trial's objectives; None for one that has failed."""
        failed = self.optuna.trial.TrialState.FAIL
        with self.locked():
            if objectives is None:
                self._study.tell(number, state=failed)
            else:
                self._study.tell(number, list(objectives))

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.folder / TRIALS / f"{number:04d}"


def _cut_half_a_line(path: Path, lock: _SystemLock) -> None:
    """Remove what a process killed while writing has left at the end of the file."""
    if not path.is_file():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()
