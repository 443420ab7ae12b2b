"""Cards of pretrained networks, made from the settings and certificates beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..perturbations.described import set_from
from ..report import markdown_table

LICENCE = "BSD-3-Clause, as the package"
#: Columns of the table of all networks, besides one for the certified share per norm.
_COLUMNS = ("network", "data", "sets", "clean", "certified union", "attacked union", "n")
_VERSIONS = ("lirpa_multinorm", "auto_LiRPA", "torch", "python")


def card_of(name: str, config: Mapping[str, Any], certified: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card of a network.

    Args:
        name: The network's name, which is also its recipe's.
        config: Content of its config.json: the settings of its training.
        certified: Content of its certified.json: its certificates on test images.

    Returns:
        Plain values: "network", "data" and "n_train"; "recipe" (the preset), "loss", "epochs",
        "model" and "seed"; "n" test images; "clean", "certified" and "attacked" per set,
        "certified union" and "attacked union" (shares); "methods" that certified and "decided by"
        (per set how many images each method decided); "rounding", "versions", "weights_sha256" and
        "licence".
    """
    result, train = certified["result"], config["train"]
    labels = [set_from(described).label for described in certified["perturbations"]]
    return {
        "network": name,
        "data": certified["data"],
        "n_train": config["n_train"],
        "recipe": name,
        "loss": train["loss"],
        "epochs": train["epochs"],
        "model": config["model"]["name"],
        "seed": train["seed"],
        "sets": dict(zip(labels, result["sets"])),
        "n": result["n"],
        "clean": result["clean"],
        "certified": dict(zip(labels, result["certified"])),
        "attacked": dict(zip(labels, result["attacked"])),
        "certified union": result["certified_union"],
        "attacked union": result["attacked_union"],
        "methods": certified["settings"]["methods"],
        "decided by": dict(zip(labels, certified["methods"])),
        "rounding": certified["settings"].get("rounding"),
        "versions": {part: certified["environment"].get(part) for part in _VERSIONS},
        "weights_sha256": certified["weights_sha256"],
        "licence": LICENCE,
    }


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as Markdown.

    Args:
        card: The result of :func:`card_of`.
    """
    rows = [
        {
            "set": card["sets"][label],
            "certified": _percent(card["certified"][label]),
            "attacked": _percent(card["attacked"][label]),
            "decided by": ", ".join(
                f"{method} {count}" for method, count in card["decided by"][label].items()
            ),
        }
        for label in card["sets"]
    ]
    union = {
        "set": "union",
        "certified": _percent(card["certified union"]),
        "attacked": _percent(card["attacked union"]),
    }
    table = markdown_table([*rows, union], ["set", "certified", "attacked", "decided by"])
    lines = [f"- {name}: {value}" for name, value in _facts(card).items()]
    return "\n".join([f"# {card['network']}", "", *lines, "", table, "", *_reading(card)])


def _facts(card: Mapping[str, Any]) -> dict[str, str]:
    """Return a card's lines above its table."""
    versions = ", ".join(f"{part} {version}" for part, version in card["versions"].items())
    return {
        "data": f"{card['data']}, {card['n_train']} training images",
        "recipe": f"preset {card['recipe']}: loss {card['loss']}, {card['epochs']} epochs, model "
        f"{card['model']}, seed {card['seed']}",
        "clean": f"{_percent(card['clean'])} % of the first {card['n']} test images",
        "certified by": f"{', '.join(card['methods'])} (rounding: {card['rounding']})",
        "versions": versions,
        "SHA-256 of the weights": card["weights_sha256"],
        "licence": card["licence"],
    }


def _reading(card: Mapping[str, Any]) -> list[str]:
    """Return what the table says, and the command that repeats it."""
    return [
        f"Percent of the first {card['n']} test images. Certified is proved; attacked is what an "
        "attack has left, an upper limit. To repeat it:",
        "",
        f"    lirpa-multinorm certify --pretrained {card['network']} --data {card['data']} "
        f"--n-test {card['n']}",
    ]


def card_table(cards: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with a line for each card.

    Args:
        cards: Results of :func:`card_of`.
    """
    rows = [
        {
            "network": card["network"],
            "data": card["data"],
            "sets": ", ".join(card["sets"]),
            "clean": _percent(card["clean"]),
            "certified union": _percent(card["certified union"]),
            "attacked union": _percent(card["attacked union"]),
            "n": card["n"],
        }
        for card in cards
    ]
    return markdown_table(rows, _COLUMNS)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
