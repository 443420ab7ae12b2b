"""Train several losses on one data set, certify each, and tabulate."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..certification import CertifySettings, certify
from ..certification.record_header import digest as digest_of_named
from ..data import ImageData, checked_data, to_unit
from ..errors import InvalidArgumentError
from ..perturbations.described import AnySet
from ..report.methods import tabulate
from ..training import ModelSpec, TrainConfig, train
from ..training.config import describe_sets
from ..training.disk_space import check_space, weight_bytes
from ..training.preflight import check_run
from ..training.run_folder import RunFolder, check_choices, digest, occupied, remove_run
from ..utils import distributed
from ..utils.environment import environment
from ..utils.files import ensure_writable, plain, write_json, writing
from ..utils.words import duration
from .rows import ROWS, Job, Rows, check_extension, jobs_of, row_config
from .table import percentages, write_table

#: What the networks of a comparison are certified by: the host's bounds, so that many are compared
#: in little time.
QUICK_METHODS = ("IBP", "CROWN-IBP", "CROWN")

Trained = tuple[Job, nn.Module, float]  # a run, its network and the seconds of training


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A comparison of losses.

    Args:
        data: Training and test images.
        spec: The network.
        perturbations: The sets, for training and certification.
        config: Training settings common to all rows (its loss is replaced by each row's).
        certification: How the trained networks are certified.
        device: Where to train.
        seeds: Train every row with each of them and report means; empty: the configuration's own
            seed.
        initial: File of weights that every row starts from, instead of another row's.
    """

    data: ImageData
    spec: ModelSpec
    perturbations: Sequence[AnySet]
    config: TrainConfig
    certification: CertifySettings = CertifySettings(QUICK_METHODS)
    device: str = "cpu"
    seeds: Sequence[int] = ()
    initial: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", checked_data(self.data))  # the class is frozen

    def run(
        self,
        output: str | Path,
        rows: Rows | None = None,
        progress: bool = True,
        resume: bool = False,
        overwrite: bool = False,
        extend: bool = False,
    ) -> list[dict]:
        """Train and certify every row; write table.json, table.md and table.png.

        The table is written anew after each run, so that an interruption loses at most one.

        Args:
            output: Folder of this comparison alone; each row gets a folder of its own in it.
            rows: What to compare; None: :data:`~lirpa_multinorm.experiments.rows.ROWS`.
            progress: Whether to show progress bars.
            resume: Whether to go on with what the folder holds; finished runs are not done again.
                Rows, seeds and how to certify may change; data, network, sets and training settings
                must be the same.
            overwrite: Whether to remove the comparison that the folder holds.
            extend: Whether what is resumed may have had fewer epochs, see
                :func:`~lirpa_multinorm.training.train`.

        Returns:
            The rows of the table; nothing in processes other than the first of several.

        Raises:
            OutputFolderError: The folder cannot be written or has no room, another process is at
                work in it, or it holds a comparison and neither ``resume`` nor ``overwrite`` is
                given, or ``resume`` and other settings; all found before training starts.
            InvalidArgumentError: The data or the settings of a row cannot be used; found before any
                row is trained.
        """
        check_choices(resume, overwrite, extend)
        rows = ROWS if rows is None else rows
        if extend:
            check_extension(rows, self.initial)
        jobs, folder = self.checked_jobs(Path(output).expanduser(), rows), ensure_writable(output)
        with occupied(folder):
            run = self._opened(folder, jobs, resume, overwrite, extend)
            trained: Iterable[Trained] = self._trained(jobs, progress, resume, extend)
            # Certification exchanges nothing, and the other processes would wait for it in vain.
            if distributed.is_active():
                trained = list(trained)
            if distributed.rank():
                return []
            return self._tabulated(run, trained, progress, resume)

    def _opened(
        self, folder: Path, jobs: Sequence[Job], resume: bool, overwrite: bool, extend: bool
    ) -> RunFolder:
        """Return the comparison's folder, which is empty or holds runs of the same settings."""
        settings = {
            "comparison": True,
            "train": self.config.to_dict(),
            "model": self.spec.to_dict(),
            "data": self.data.name,
            "n_train": len(self.data.x_train),
            "data_sha256": digest(self.data.x_train, self.data.y_train),
            "perturbations": describe_sets(list(self.perturbations)),
        }
        run = RunFolder(folder, settings, resume, overwrite, extend)
        described = run.described() or {}
        # Without a description there is no run, or a table of an older version, whose rows are
        # checked.
        if resume and described:
            run.check(described)
            run.take_over(described, described)
            run.note_extension(described["train"]["epochs"])
        distributed.wait_for_all()  # the others have read it too
        if not distributed.rank():
            before = described.get("rows", [])
            now = {str(job.folder.relative_to(folder)) for job in jobs}
            for name in {*before, *now} if overwrite else ():
                remove_run(folder / name)
            run.begin(self.device, rows=sorted(now if overwrite else {*before, *now}))
        return run

    def _tabulated(
        self, run: RunFolder, trained: Iterable[Trained], progress: bool, resume: bool
    ) -> list[dict]:
        """Certify the networks one by one, and write the table anew after each."""
        contents: list[dict] = []
        table: list[dict] = []
        for job, model, seconds in trained:
            contents.append(self._result(job, model, seconds, progress, resume))
            table = tabulate([content["row"] for content in contents])
            with writing(run.path / "table.json"):
                self.write(run, table, contents)
        return table

    def checked_jobs(self, folder: Path, rows: Rows) -> list[Job]:
        """Return the runs; each row's settings are checked, so that no row is trained in vain."""
        jobs = jobs_of(rows, folder, self.config, self.seeds, self.initial)
        for job in {job.name: job for job in jobs}.values():
            try:
                check_run(
                    self.spec, self.data, self.perturbations, job.config, self.device, self.initial
                )
            except InvalidArgumentError as error:
                if len(rows) == 1:
                    raise
                raise InvalidArgumentError(f"{error} (row {job.name!r})") from error
        check_space(folder, weight_bytes(self.spec), len(jobs))
        return jobs

    def _trained(
        self, jobs: Sequence[Job], progress: bool, resume: bool, extend: bool
    ) -> Iterator[Trained]:
        """Train the runs one by one, and yield each with its network and seconds."""
        begun = 0.0
        for index, job in enumerate(jobs):
            started = time.perf_counter()
            begun = begun if index else started
            title = _title(job, index, len(jobs), started - begun)
            model = train(
                self.spec,
                self.data,
                self.perturbations,
                job.config,
                job.folder,
                self.device,
                progress and title,
                job.initial,
                resume,
                False,
                extend,
            )
            yield job, model, time.perf_counter() - started

    def _result(
        self, job: Job, model: nn.Module, seconds: float, progress: bool, resume: bool
    ) -> dict:
        """Return a run's result: certified now, or before with the same weights and settings."""
        path = job.folder / "result.json"
        described = json.loads((job.folder / "config.json").read_text(encoding="utf-8"))
        settings = plain(
            {
                "run_sha256": described["run_sha256"],
                "weights_sha256": digest_of_named(sorted(model.state_dict().items())),
                "model": self.spec.to_dict(),
                "train": job.config.to_dict(),
                "certification": self.certification,
                "perturbations": describe_sets(list(self.perturbations)),
                "data": self.data.name,
                "n": len(self.data.x_test),
                "test_sha256": digest(self.data.x_test, self.data.y_test),
            }
        )
        recorded = _recorded(path, job, settings) if resume and path.is_file() else None
        if recorded is not None:
            return recorded
        row = {
            "method": job.name,
            **self.certified(model.to(self.device), progress and f"certify {job.name}"),
            "seconds": round(seconds, 1),
            "seed": job.config.seed,
        }
        content = {"row": row, "settings": settings}
        with writing(path):
            write_json(path, content)
        return content

    def row_config(self, row: Mapping[str, Any]) -> TrainConfig:
        """Return the training settings of a row."""
        return row_config(self.config, row)

    def certified(self, model: nn.Module, progress: bool | str = True) -> dict[str, Any]:
        """Certify a network on the test images and return its percentages."""
        x, y = to_unit(self.data.x_test).to(self.device), self.data.y_test.to(self.device)
        result = certify(model, x, y, self.perturbations, self.certification, progress)
        return percentages(result.summary(), self.perturbations)

    def write(self, run: RunFolder, table: list[dict], contents: list[dict]) -> None:
        """Write the table as JSON, Markdown and PNG.

        The JSON also holds every run, its identity, configuration and environment.
        """
        described = {
            "data": self.data.name,
            "n_train": len(self.data.x_train),
            "n_test": len(self.data.x_test),
            "model": self.spec.to_dict(),
            "perturbations": describe_sets(list(self.perturbations)),
            "train": self.config.to_dict(),
            "certification": self.certification,
            "environment": environment(self.device),
        }
        more = {
            "runs": [content["row"] for content in contents],
            "settings": described,
            "identities": [_identity_of(content) for content in contents],
            **run.identity,
        }
        write_table(run.path, table, more, self.data.name, self.perturbations)


def _title(job: Job, index: int, count: int, spent: float) -> str:
    """Return the title of a run's progress bar: its row, its number, and the time left for all.

    The time left is that of runs as long as those before, on which ``spent`` seconds went.
    """
    if count == 1:
        return job.name
    left = f", {duration(spent / index * (count - index))} left" if index else ""
    return f"{job.name} ({index + 1} of {count}{left})"


def _recorded(path: Path, job: Job, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return a run's recorded result; None for a damaged file, or one of other settings."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        row = content["row"]
        if (
            content["settings"] == settings
            and (row["method"], row["seed"]) == (job.name, job.config.seed)
            and {"clean", "certified union", "n", "seconds"} <= row.keys()
        ):
            return content
    return None


def _identity_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method, seed and hashes that identify a result."""
    row, settings = content["row"], content["settings"]
    return {
        "method": row["method"],
        "seed": row["seed"],
        **{name: settings[name] for name in ("run_sha256", "weights_sha256")},
    }
