"""The SHA-256 of every released network's files, by which ``pretrained`` knows them.

    python -m benchmarks.manifest [--wheel NAME ...]

Writes ``lirpa_multinorm/networks/manifest.json`` from the folders in ``networks/``. What is in the
wheel stays there; --wheel adds names. benchmarks.release does it too.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

from lirpa_multinorm.cli.arguments import guarded
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.networks.files import MANIFEST, NETWORK_FILES, manifest
from lirpa_multinorm.utils.files import write_json

NETWORKS = Path(__file__).resolve().parents[1] / "networks"
LARGEST_WHEEL = 8 << 20  # bytes of all checkpoints in it


def write_manifest(networks: Path = NETWORKS, wheel: Sequence[str] = ()) -> None:
    """Write the manifest anew.

    Args:
        networks: Folder of the networks.
        wheel: Names that are to be in the wheel, beside those that are.

    Raises:
        InvalidArgumentError: A name is no network, or the wheel would become too large.
    """
    old = manifest() if MANIFEST.is_file() else {}
    folders = {path.parent.name: path.parent for path in sorted(networks.glob("*/checkpoint.pt"))}
    unknown = sorted(set(wheel) - set(folders))
    if unknown:
        raise InvalidArgumentError(
            f"--wheel {' '.join(unknown)}: no such network; use {', '.join(folders)}"
        )
    entries = {
        name: {
            "wheel": name in wheel or old.get(name, {}).get("wheel", False),
            "sha256": {
                file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
                for file in NETWORK_FILES
            },
        }
        for name, folder in folders.items()
    }
    sizes = [
        (folders[name] / "checkpoint.pt").stat().st_size
        for name, entry in entries.items()
        if entry["wheel"]
    ]
    if sum(sizes) > LARGEST_WHEEL:
        raise InvalidArgumentError(
            f"--wheel: the networks in it would take {sum(sizes)} bytes, more than "
            f"{LARGEST_WHEEL}; leave some out"
        )
    write_json(MANIFEST, entries)


@guarded
def main_of(args: argparse.Namespace) -> None:
    """Write the manifest, and print its path."""
    write_manifest(wheel=args.wheel)
    print(MANIFEST)


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel", nargs="+", default=[], metavar="NAME", help="put into the wheel")
    return main_of(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
