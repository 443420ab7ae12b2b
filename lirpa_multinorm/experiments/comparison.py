"""Train several losses on one data set, certify each, and tabulate."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..certification import CertifySettings, certify
from ..certification.records import digest as digest_of_named
from ..data import ImageData, checked_data, to_unit
from ..errors import InvalidArgumentError
from ..losses import accepts
from ..perturbations import PerturbationLpBox
from ..report import grouped_bars, markdown_table
from ..report.methods import LABELS, SPREAD, spread_cells, tabulate
from ..training import ModelSpec, TrainConfig, train
from ..training.config import describe_sets
from ..training.preflight import check_run, check_space, weight_bytes
from ..training.run_folder import RunFolder, check_choices, digest, occupied, remove_run
from ..utils import distributed
from ..utils.environment import environment
from ..utils.files import ensure_writable, plain, write_json, write_text, writing
from .settings import merge

#: The rows of a comparison. Beside settings of TrainConfig a row may name the row whose network it
#: starts from ("initial") and the share of the epochs it then trains for ("share").
ROWS: dict[str, dict[str, Any]] = {
    "natural": {"loss": "natural"},
    "SABR l_inf": {"loss": "sabr"},
    "CURE-l2": {"loss": "cure_l2", "regularizer": 0.0},
    "Joint": {"loss": "joint"},
    "Max": {"loss": "max"},
    "Random": {"loss": "random"},
    "Scratch": {"loss": "cure", "projection": {"beta": 0.5}},
    "Finetune": {
        "loss": "cure",
        "loss_options": {"eta": 0.5},
        "initial": "SABR l_inf",
        "share": 0.2,
    },
}
#: Rows that a comparison has only if asked for.
MORE_ROWS: dict[str, dict[str, Any]] = {
    "Max ball": {"loss": "max", "loss_options": {"region_2": "ball", "ratio_2": 0.5}},
    "MTL-IBP": {"loss": "mtl_ibp"},
    "CC-IBP": {"loss": "cc_ibp"},
    "Exp-IBP": {"loss": "exp_ibp"},
    "IBP": {"loss": "ibp"},
    "CROWN-IBP": {"loss": "crown_ibp"},
    "TAPS": {"loss": "taps"},
    "STAPS": {"loss": "staps"},
}
#: What the networks of a comparison are certified by: the host's bounds, so that many are compared
#: in little time.
QUICK_METHODS = ("IBP", "CROWN-IBP", "CROWN")


class Job(NamedTuple):
    """One training run of a comparison."""

    name: str
    config: TrainConfig
    folder: Path
    initial: Path | None


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
    perturbations: Sequence[PerturbationLpBox]
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
        rows: Mapping[str, dict[str, Any]] | None = None,
        progress: bool = True,
        resume: bool = False,
        overwrite: bool = False,
        extend: bool = False,
    ) -> list[dict]:
        """Train and certify every row; write table.json, table.md and table.png.

        The table is written anew after each run, so that an interruption loses at most one.

        Args:
            output: Folder of this comparison alone; each row gets a folder of its own in it.
            rows: What to compare; None: :data:`ROWS`.
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
            _check_starts(rows, self.initial)
        jobs, folder = self.checked_jobs(Path(output).expanduser(), rows), ensure_writable(output)
        with occupied(folder):
            place = self._opened(folder, jobs, resume, overwrite, extend)
            trained = self._trained(jobs, progress, resume, extend)
            if (
                distributed.is_active()
            ):  # certification exchanges nothing, and the others would wait in vain
                trained = list(trained)
            if distributed.rank():
                list(trained)
                return []
            return self._tabulated(place, trained, progress, resume)

    def _opened(
        self, folder: Path, jobs: Sequence[Job], resume: bool, overwrite: bool, extend: bool
    ) -> RunFolder:
        """Return the comparison's folder, ready for its runs.

        Empty, or with runs of the same settings.
        """
        settings = {
            "comparison": True,
            "train": self.config.to_dict(),
            "model": self.spec.to_dict(),
            "data": self.data.name,
            "n_train": len(self.data.x_train),
            "data_sha256": digest(self.data.x_train, self.data.y_train),
            "perturbations": describe_sets(list(self.perturbations)),
        }
        place = RunFolder(folder, settings, resume, overwrite, extend)
        described = place.described() or {}
        if (
            resume and described
        ):  # otherwise there is nothing, or a table of an older version, whose rows are checked
            place.check(described)
            place.take_over(described, described)
            place.note_extension(described["train"]["epochs"])
        distributed.wait_for_all()  # the others have read it too
        if not distributed.rank():
            before, now = (
                described.get("rows", []),
                {str(job.folder.relative_to(folder)) for job in jobs},
            )
            for name in {*before, *now} if overwrite else ():
                remove_run(folder / name)
            place.begin(self.device, rows=sorted(now if overwrite else {*before, *now}))
        return place

    def _tabulated(
        self,
        place: RunFolder,
        trained: Iterator[tuple[Job, nn.Module, float]],
        progress: bool,
        resume: bool,
    ) -> list[dict]:
        """Certify what is trained, one after the other, with the table written each time."""
        contents, table = [], []
        for job, model, seconds in trained:
            contents.append(self._result(job, model, seconds, progress, resume))
            table = tabulate([content["row"] for content in contents])
            with writing(place.path / "table.json"):
                self.write(place, table, contents)
        return table

    def checked_jobs(self, folder: Path, rows: Mapping[str, dict[str, Any]]) -> list[Job]:
        """Return the runs.

        Each row's settings are checked first, so that no row is trained in vain.
        """
        jobs = self._jobs(folder, rows)
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

    def _jobs(self, folder: Path, rows: Mapping[str, dict[str, Any]]) -> list[Job]:
        """Return the runs; a row that starts from another row's network comes after it."""
        if len(set(self.seeds)) < len(self.seeds):
            raise InvalidArgumentError(
                f"seeds={list(self.seeds)} names one twice; the runs would be the same"
            )
        jobs, folders = [], {}
        for name, row in rows.items():
            other = folders.setdefault(row_folder(name), name)
            if (
                other != name
                or Path(row_folder(name)).name != row_folder(name)
                or row_folder(name) == ".."
            ):
                raise InvalidArgumentError(
                    f"rows: {name!r} cannot have the folder {row_folder(name)!r}"
                    f"{'' if other == name else f', which {other!r} has'}; rename it"
                )
            start = row.get("initial") if self.initial is None else None
            if start is not None and start not in rows:
                raise InvalidArgumentError(
                    f"methods: {name!r} starts from the network of {start!r}; add that method, "
                    "or give a checkpoint with --initial"
                )
            for seed in self.seeds or [self.config.seed]:
                place = Path(f"seed_{seed}") if self.seeds else Path()
                initial = (
                    self.initial
                    if start is None
                    else folder / row_folder(start) / place / "checkpoint.pt"
                )
                config = dataclasses.replace(self.row_config(row), seed=seed)
                jobs.append(Job(name, config, folder / row_folder(name) / place, initial))
        return sorted(jobs, key=lambda job: rows[job.name].get("initial") in rows)

    def _trained(
        self, jobs: Sequence[Job], progress: bool, resume: bool, extend: bool
    ) -> Iterator[tuple[Job, nn.Module, float]]:
        for job in jobs:
            started = time.perf_counter()
            model = train(
                self.spec,
                self.data,
                self.perturbations,
                job.config,
                job.folder,
                self.device,
                progress,
                job.initial,
                resume,
                False,
                extend,
            )
            yield job, model, time.perf_counter() - started

    def _result(
        self, job: Job, model: nn.Module, seconds: float, progress: bool, resume: bool
    ) -> dict:
        """Certify a run, or take what was found for the same weights with the same settings."""
        path = job.folder / "result.json"
        run = json.loads((job.folder / "config.json").read_text(encoding="utf-8"))["run_sha256"]
        settings = plain(
            {
                "run_sha256": run,
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
        if resume and path.is_file():
            with contextlib.suppress(
                ValueError, LookupError, TypeError
            ):  # not a file of ours: certify again
                content = json.loads(path.read_text(encoding="utf-8"))
                row = content["row"]
                if (
                    content["settings"] == settings
                    and (row["method"], row["seed"]) == (job.name, job.config.seed)
                    and ({"clean", "certified union", "n", "seconds"} <= row.keys())
                ):
                    return content
        row = {
            "method": job.name,
            **self.certified(model.to(self.device), progress),
            "seconds": round(seconds, 1),
            "seed": job.config.seed,
        }
        content = {"row": row, "settings": settings}
        with writing(path):
            write_json(path, content)
        return content

    def row_config(self, row: Mapping[str, Any]) -> TrainConfig:
        """Return the training settings of a row."""
        common = {
            name: value
            for name, value in self.config.loss_options.items()
            if accepts(row["loss"], name)
        }
        options = {**common, **row.get("loss_options", {})}
        rest = {
            name: value
            for name, value in row.items()
            if name not in ("loss", "loss_options", "initial", "share")
        }
        config = self.config if "share" not in row else shortened(self.config, row["share"])
        settings = dict(config.to_dict(), loss=row["loss"], loss_options=options)
        return TrainConfig.from_dict(merge(settings, rest))

    def certified(self, model: nn.Module, progress: bool = True) -> dict:
        """Certify a network on the test images and return its percentages."""
        x, y = to_unit(self.data.x_test).to(self.device), self.data.y_test.to(self.device)
        found = certify(model, x, y, self.perturbations, self.certification, progress).summary()
        percent = lambda share: round(100 * share, 2)  # noqa: E731
        per_set = {
            f"certified {name}": percent(share)
            for name, share in zip(set_names(self.perturbations), found["certified"])
        }
        return {
            "clean": percent(found["clean"]),
            **per_set,
            "certified union": percent(found["certified_union"]),
            "attacked union": percent(found["attacked_union"]),
            "n": found["n"],
        }

    def write(self, place: RunFolder, table: list[dict], contents: list[dict]) -> None:
        """Write the table as JSON, Markdown and PNG.

        The JSON also holds every run, its identity, configuration and environment.
        """
        folder, results = place.path, [content["row"] for content in contents]
        identities = [
            {
                "method": content["row"]["method"],
                "seed": content["row"]["seed"],
                **{name: content["settings"][name] for name in ("run_sha256", "weights_sha256")},
            }
            for content in contents
        ]
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
        write_json(
            folder / "table.json",
            {
                "rows": table,
                "runs": results,
                "settings": described,
                "identities": identities,
                **place.identity,
            },
        )
        columns = [name for name in table[0] if not name.endswith(SPREAD)]
        write_text(folder / "table.md", markdown_table(spread_cells(table), columns) + "\n")
        sets = ", ".join(f"{norm_name(one)} {one.eps:g}" for one in self.perturbations)
        bars = ["method", *[name for name in columns if name not in LABELS]]
        errors = {name: name + SPREAD for name in bars if name + SPREAD in table[0]}
        grouped_bars(
            table,
            bars,
            folder / "table.png",
            f"{self.data.name}: {sets} (n = {table[0]['n']})",
            "% of test images",
            errors=errors,
        )


def _check_starts(rows: Mapping[str, Mapping[str, Any]], initial: Path | None) -> None:
    """Raise InvalidArgumentError where a row starts from a network more epochs would change."""
    for name, row in rows.items():
        if initial is None and row.get("initial") is not None:
            raise InvalidArgumentError(
                f"extend: {name!r} starts from the network of {row['initial']!r}, which more "
                "epochs change; leave that method out, or train all anew by --overwrite "
                "(overwrite=True)"
            )


def shortened(config: TrainConfig, share: float) -> TrainConfig:
    """Return the settings of fine-tuning.

    A share of the epochs, everything in proportion, robust from the start.
    """
    config = config.scaled(max(1, round(share * config.epochs)))
    schedule = dataclasses.replace(
        config.schedule, natural_epochs=0, kappa_start=config.schedule.kappa_end
    )
    return dataclasses.replace(
        config, schedule=schedule, initialization="default", average_from=None
    )


def norm_name(perturbation: PerturbationLpBox) -> str:
    """Return "l_inf", "l_2" or "l_1"."""
    return f"l_{perturbation.norm}"


def set_names(perturbations: Sequence[PerturbationLpBox]) -> list[str]:
    """Return a name per set: its norm, and its radius too where several sets have that norm."""
    norms = [norm_name(one) for one in perturbations]
    return [
        f"{name} {one.eps:g}" if norms.count(name) > 1 else name
        for name, one in zip(norms, perturbations)
    ]


def row_folder(name: str) -> str:
    """Return a file name for a row of the table."""
    return name.lower().replace(" ", "_")
