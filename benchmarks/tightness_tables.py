"""What the report shows of a row of the tightness benchmark: its tables and the bars drawn."""

from __future__ import annotations

from typing import Any


def region_table(row: dict[str, Any]) -> list[dict]:
    """Return a line per region and method, all with the same columns."""
    lines = [
        {
            "region": bounds["region"],
            "is a": bounds["kind"],
            "method": bounds["method"],
            "certified %": bounds["certified %"],
            "above PGD": bounds.get("above PGD"),
            "gap to PGD": bounds["gap to PGD"],
            "positive but attacked %": bounds.get("positive but attacked %"),
            **{
                f"layer {number} {name}": layer[name]
                for number, layer in enumerate(bounds["layers"], 1)
                for name in ("width", "unstable %")
            },
        }
        for bounds in row["rows"]
    ]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    return [{name: line.get(name) for name in columns} for line in lines]


def containment_table(row: dict[str, Any]) -> list[dict]:
    """Return, per region, how far it sticks out of each other one and what it holds."""
    return [
        {
            "region": inside,
            **{around: others.get(around) for around in row["containment"]},
            "of the attack's points it holds %": (
                row["seen"].get(inside, {}).get("attacked points inside %")
            ),
        }
        for inside, others in row["containment"].items()
    ]


def gap_bars(row: dict[str, Any]) -> tuple[list[dict], list[str]]:
    """Return the gaps to PGD, a group of bars per region, and their columns: region and methods.

    Training regions have none.
    """
    threat = [bounds for bounds in row["rows"] if bounds["kind"] != "training region"]
    gaps = {
        method: {
            bounds["region"]: bounds["gap to PGD"]
            for bounds in threat
            if bounds["method"] == method
        }
        for method in dict.fromkeys(bounds["method"] for bounds in threat)
    }
    bars = [
        {"region": region, **{method: gaps[method].get(region) for method in gaps}}
        for region in dict.fromkeys(bounds["region"] for bounds in threat)
    ]
    return bars, ["region", *gaps]
