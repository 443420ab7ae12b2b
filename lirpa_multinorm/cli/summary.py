"""The summary of a certification: printed, and written to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..certification import STATUSES, Certification
from ..perturbations.described import describe_set
from ..perturbations.geometric import PerturbationGeometric
from ..report import markdown_table
from ..utils.files import write_json, write_text, writing


def show(certification: Certification, about: dict[str, Any], folder: Path | None = None) -> None:
    """Print the accuracies, and write them to a folder.

    Args:
        certification: The result.
        about: What was certified and how: "checkpoint", "data", "settings" and "environment".
        folder: For summary.json and summary.md; None: print only.
    """
    result = certification.summary()
    text = _as_text(certification, result, about)
    print(text)
    if folder is not None:
        described = [
            dict(describe_set(perturbation), title=perturbation.title())
            for perturbation in certification.perturbations
        ]
        with writing(folder):
            write_json(
                folder / "summary.json",
                {
                    **about,
                    "perturbations": described,
                    "result": result,
                    "errors": certification.errors,
                },
            )
            write_text(folder / "summary.md", text + "\n")
        print(f"\nrecords, summary.json and summary.md: {folder}")


def _as_text(certification: Certification, result: dict[str, Any], about: dict[str, Any]) -> str:
    """Return the result as Markdown: accuracies, then the number of images per status."""
    names = [perturbation.label for perturbation in certification.perturbations]
    sections = [
        f"{about['checkpoint']} on {result['n']} images of {about['data']}: "
        f"{'; '.join(result['sets'])}",
        markdown_table(
            [*_accuracies(result, names), *_universal(certification, result)],
            ["accuracy", "share", "95 % interval"],
        ),
        markdown_table(
            [{"images": name, **counts} for name, counts in zip(names, result["counts"])],
            ["images", *STATUSES],
        ),
    ]
    for status, images in (("not run", result["not_run"]), ("error", sorted(certification.errors))):
        if images:
            sections.append(
                f"{status}: image{'s' * (len(images) > 1)} {', '.join(map(str, images[:10]))}"
                f"{' and more' * (len(images) > 10)}"
            )
    return "\n\n".join(sections)


def _universal(certification: Certification, result: dict[str, Any]) -> list[dict[str, str]]:
    """Return the row of universal certified robustness: the mean over several sets of transforms.

    Source: Jiang and Singh 2024 (CURE), Table 2, last column.
    """
    shares = [
        share
        for perturbation, share in zip(certification.perturbations, result["certified"])
        if isinstance(perturbation, PerturbationGeometric)
    ]
    if len(shares) < 2:
        return []
    mean = sum(shares) / len(shares)
    return [{"accuracy": "certified mean of transforms", "share": f"{mean:.4f}"}]


def _accuracies(result: dict[str, Any], names: list[str]) -> list[dict[str, str]]:
    """Return a row per accuracy, with its confidence interval."""
    kinds = ["clean", "certified", "attacked"]
    if len(names) > 1:  # the union of a single set is the set
        kinds = ["clean", "certified", "certified_union", "attacked", "attacked_union"]
    rows = []
    for kind in kinds:
        shares, intervals = result[kind], result["intervals"][kind]
        label = kind.replace("_", " ")
        cells = [("", shares, intervals)]
        if isinstance(shares, list):
            cells = list(zip(names, shares, intervals))
        for name, share, interval in cells:
            rows.append(
                {
                    "accuracy": f"{label} {name}".strip(),
                    "share": f"{share:.4f}",
                    "95 % interval": f"{interval[0]:.4f} to {interval[1]:.4f}",
                }
            )
    return rows
