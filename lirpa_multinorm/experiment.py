"""Train several losses on one data set, certify each, and tabulate."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from torch import nn

from .certification import CertifySettings, certify
from .data import ImageData, to_unit
from .io import ensure_writable, environment, write_json, write_text
from .perturbations import PerturbationLpBox
from .report import grouped_bars, markdown_table
from .training import ModelSpec, TrainConfig, train
from .training.config import describe_sets

#: The rows of a comparison: what the table calls a loss, its name, and options beside the common ones.
ROWS: Dict[str, Dict[str, Any]] = {
    "natural": {"loss": "natural"},
    "SABR l_inf": {"loss": "sabr"},
    "CURE-l2": {"loss": "cure_l2"},
    "Joint": {"loss": "joint"},
    "Max": {"loss": "max"},
    "Random": {"loss": "random"},
}
NO_BARS = ("n", "seconds")


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
    """

    data: ImageData
    spec: ModelSpec
    perturbations: Sequence[PerturbationLpBox]
    config: TrainConfig
    certification: CertifySettings = CertifySettings()
    device: str = "cpu"

    def run(self, output: Union[str, Path], rows: Optional[Mapping[str, Dict[str, Any]]] = None,
            progress: bool = True) -> List[dict]:
        """Train and certify every row; write table.json, table.md and table.png.

        The table is written anew after each row, so that an interruption loses at most one.

        Args:
            output: Folder; each row gets a folder of its own in it.
            rows: What to compare; None: :data:`ROWS`.
            progress: Whether to show progress bars.

        Returns:
            The rows of the table.

        Raises:
            OutputFolderError: The folder cannot be written; found before training starts.
        """
        folder, table = ensure_writable(output), []
        for name, row in (ROWS if rows is None else rows).items():
            started = time.perf_counter()
            config = self.row_config(row)
            model = train(self.spec, self.data, self.perturbations, config, folder / row_folder(name), self.device,
                          progress)
            seconds = time.perf_counter() - started
            table.append({"method": name, **self.certified(model.cpu(), progress), "seconds": round(seconds, 1)})
            self.write(folder, table)
        return table

    def row_config(self, row: Dict[str, Any]) -> TrainConfig:
        """Return the training settings of a row."""
        options = {**_accepted(row["loss"], self.config.loss_options), **row.get("loss_options", {})}
        rest = {name: value for name, value in row.items() if name not in ("loss", "loss_options")}
        return dataclasses.replace(self.config, loss=row["loss"], loss_options=options, **rest)

    def certified(self, model: nn.Module, progress: bool = True) -> dict:
        """Certify a network on the test images and return its percentages."""
        found = certify(model, to_unit(self.data.x_test), self.data.y_test, self.perturbations, self.certification,
                        progress).summary()
        percent = lambda share: round(100 * share, 2)  # noqa: E731
        per_set = {f"certified {name}": percent(share)
                   for name, share in zip(set_names(self.perturbations), found["certified"])}
        return {"clean": percent(found["clean"]), **per_set, "certified union": percent(found["certified_union"]),
                "attacked union": percent(found["attacked_union"]), "n": found["n"]}

    def write(self, folder: Path, table: List[dict]) -> None:
        """Write the table as JSON (with configuration and environment), Markdown and PNG."""
        described = {"data": self.data.name, "n_train": len(self.data.x_train), "n_test": len(self.data.x_test),
                     "model": self.spec.to_dict(), "perturbations": describe_sets(list(self.perturbations)),
                     "train": self.config.to_dict(), "certification": self.certification,
                     "environment": environment(self.device)}
        write_json(folder / "table.json", {"rows": table, "settings": described})
        columns = list(table[0])
        write_text(folder / "table.md", markdown_table(table, columns) + "\n")
        sets = ", ".join(f"{norm_name(one)} {one.eps:g}" for one in self.perturbations)
        grouped_bars(table, [name for name in columns if name not in NO_BARS], folder / "table.png",
                     f"{self.data.name}: {sets} (n = {table[0]['n']})", "% of test images")


def norm_name(perturbation: PerturbationLpBox) -> str:
    """Return "l_inf", "l_2" or "l_1"."""
    return f"l_{perturbation.norm}"


def set_names(perturbations: Sequence[PerturbationLpBox]) -> List[str]:
    """Return a name per set: its norm, and its radius too where several sets have that norm."""
    norms = [norm_name(one) for one in perturbations]
    return [f"{name} {one.eps:g}" if norms.count(name) > 1 else name for name, one in zip(norms, perturbations)]


def row_folder(name: str) -> str:
    """Return a file name for a row of the table."""
    return name.lower().replace(" ", "_")


def _accepted(loss: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """Return the common options that a loss knows (SABR has no ``ratio_2``, and so on)."""
    known = {"natural": (), "ibp": ("weights",), "sabr": ("ratio_inf",), "cure_l2": ("ratio_2", "region_2")}
    return {name: value for name, value in options.items() if loss not in known or name in known[loss]}
