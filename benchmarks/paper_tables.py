"""What the report shows of a row of the paper's column.

A line per cell of the host, the exported network's columns, and sound numbers.
"""

from __future__ import annotations

from typing import Any

from .paper_networks import IN_FRONT


def broken_images(row: dict[str, Any], cell: dict[str, Any], of: str = "") -> list[int]:
    """Return a cell's verified images that are broken in its own set, or in the set ``of``."""
    return sorted(set(cell["verified"]) & set(row["broken"][of or cell["set"]]))


def host_cell(row: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """Return how many images a cell calls verified, and how many of these an attack breaks."""
    return {
        "radii": row["radii"],
        "network": row["row"],
        "first operator": cell["front"],
        "method": cell["method"],
        "images": cell["tried"],
        "verified": "fails" if cell["fails"] else len(cell["verified"]),
        "of these broken": len(broken_images(row, cell)),
        "broken within [0, 1]": len(broken_images(row, cell, "l_2")),
    }


def exported_columns(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the exported network's columns would say, each by the last method not to fail."""
    cells = {
        cell["set"]: cell for cell in row["host"] if cell["front"] == IN_FRONT and not cell["fails"]
    }
    l_inf, l_2 = (set(cells[name]["verified"]) for name in ("l_inf", "plain l_2"))
    shares = {
        "clean": row["right"],
        "l_inf": l_inf,
        "l_2": l_2,
        "union": l_inf & l_2,
        "of the union broken": l_inf & l_2 & {*row["broken"]["plain l_2"], *row["broken"]["l_inf"]},
    }
    return {
        "radii": row["radii"],
        "network": row["row"],
        "l_inf by": cells["l_inf"]["method"],
        "l_2 by": cells["plain l_2"]["method"],
        **{name: 100 * len(images) / row["n"] for name, images in shares.items()},
    }


def sound_shares(row: dict[str, Any]) -> dict[str, Any]:
    """Return between which shares each accuracy lies.

    What our cascade certifies, and what no attack breaks.
    """
    n = row["n_cascade"]
    low = {name: set(images) for name, images in row["ours"].items()}
    high = {
        name: {image for image in row["right"] if image < n} - set(row["broken"][name])
        for name in low
    }
    for side in (low, high):
        side["union"] = side["l_inf"] & side["l_2"]
    return {
        "radii": row["radii"],
        "network": row["row"],
        "images": n,
        **{name: f"{100 * len(low[name]) / n:g} to {100 * len(high[name]) / n:g}" for name in low},
    }
