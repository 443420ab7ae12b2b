"""A trained network for others.

Its weights without the training state, its settings, its log and its certificates.

    python -m benchmarks.release RUN networks/NAME [--n-test 1000] [--data-dir DIR] [--data FILE]
                                 [--wheel]

RUN is the folder of one training run (checkpoint.pt, config.json, log.jsonl). The folder then holds
checkpoint.pt, which ``lirpa-multinorm certify`` reads, config.json and log.jsonl of the run, and
certified.json: what the default cascade, or --methods, finds on the first test images.
``networks/README.md`` has the table of all, which is printed last. The SHA-256 of the files goes
into the manifest of ``lirpa_multinorm/networks``, by which ``pretrained("NAME")`` knows them; with
--wheel the network is built into the wheel.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lirpa_multinorm.certification import METHODS, CertifySettings, certify
from lirpa_multinorm.certification.record_header import digest
from lirpa_multinorm.cli.arguments import add_data_arguments, data_from, guarded
from lirpa_multinorm.data import to_unit
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations.described import set_from
from lirpa_multinorm.report import markdown_table
from lirpa_multinorm.training import load_checkpoint, save_checkpoint
from lirpa_multinorm.training.config import describe_sets
from lirpa_multinorm.utils.environment import environment
from lirpa_multinorm.utils.files import write_json

from .manifest import NETWORKS, write_manifest

LARGEST = 1 << 20  # bytes of a checkpoint
FIRST = 20  # images whose statuses are written one by one, for others to compare with theirs


def release(run: Path, folder: Path) -> Path:
    """Copy what others need of a run, and return the path of the checkpoint.

    Raises:
        InvalidArgumentError: The weights take more than a megabyte.
    """
    trained = load_checkpoint(run / "checkpoint.pt")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    save_checkpoint(
        path,
        trained.model,
        trained.spec,
        trained.perturbations,
        trained.config,
        trained.epoch,
        trained.run["origin"],
    )
    if path.stat().st_size > LARGEST:
        path.unlink()
        raise InvalidArgumentError(
            f"run={str(run)!r}: its weights take more than {LARGEST} bytes; release a smaller "
            "network"
        )
    for name in ("config.json", "log.jsonl"):
        shutil.copyfile(run / name, folder / name)
    return path


def certified(path: Path, data, n: int, methods: Sequence[str] = METHODS) -> dict:
    """Certify a released network on the first test images by a cascade."""
    trained = load_checkpoint(path)
    settings, sets = CertifySettings(methods), trained.perturbations
    result = certify(trained.model, to_unit(data.x_test[:n]), data.y_test[:n], sets, settings)
    return {
        "data": data.name,
        "perturbations": describe_sets(sets),
        "settings": settings,
        "weights_sha256": digest(trained.model.state_dict().items()),
        "result": result.summary(),
        "first": {"n": min(FIRST, n), "status": [row[:FIRST] for row in result.status]},
        "methods": [dict(Counter(name or "open" for name in names)) for names in result.method],
        "environment": environment("cpu"),
    }


def table(networks: Path) -> str:
    """Return the certificates of all released networks as a Markdown table."""
    rows = []
    for path in sorted(networks.glob("*/certified.json")):
        written, lines = (
            json.loads(path.read_text()),
            (path.parent / "log.jsonl").read_text().splitlines(),
        )
        result, logged = written["result"], map(json.loads, lines)
        sets = {
            set_from(described).name: share
            for described, share in zip(written["perturbations"], result["certified"])
        }
        shares = {
            "clean": result["clean"],
            **sets,
            "union": result["certified_union"],
            "attacked": result["attacked_union"],
        }
        rows.append(
            {
                "network": f"[{path.parent.name}]({path.parent.name})",
                "n": result["n"],
                **{name: f"{100 * share:.1f}" for name, share in shares.items()},
                "minutes": round(sum(epoch["seconds"] for epoch in logged) / 60),
                **left_out(written["settings"]["methods"]),
            }
        )
    columns = ["network", "clean", "l_inf", "l_2", "l_1"]
    columns += sorted({name for row in rows for name in row if name.endswith("patch")})
    columns += ["union", "attacked", "n", "minutes", "left out of the cascade"]
    return markdown_table(
        rows, [column for column in columns if any(column in row for row in rows)]
    )


def left_out(methods: Sequence[str]) -> dict[str, str]:
    """Return the cell that names the methods of the default cascade that were not run, if any."""
    missing = [method for method in METHODS if method not in methods]
    return {"left out of the cascade": ", ".join(missing)} if missing else {}


@guarded
def main_of(args: argparse.Namespace) -> None:
    """Release a run and certify it."""
    path = release(args.run_folder, args.folder)
    data = data_from(args, load_checkpoint(path).run["origin"]["data"])
    result = certified(path, data, min(args.n_test or 1000, len(data.x_test)), args.methods)
    write_json(args.folder / "certified.json", result)
    if args.folder.resolve().parent == NETWORKS:
        write_manifest(wheel=[args.folder.name] if args.wheel else [])
    print(
        f"{args.folder}: checkpoint.pt, config.json, log.jsonl,"
        f" certified.json\n\n{table(args.folder.parent)}"
    )


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN")
    parser.add_argument("folder", type=Path, metavar="networks/NAME")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        metavar="METHOD",
        help="the cascade (default: %(default)s)",
    )
    parser.add_argument("--wheel", action="store_true", help="put the network into the wheel")
    add_data_arguments(parser, None)
    return main_of(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
