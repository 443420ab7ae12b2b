"""A study of the toy images, for the tests of tuning and for their processes."""

import json
from pathlib import Path

from lirpa_multinorm.cli import main
from tests.toy import write_npz

SETTINGS = {
    "model": "mlp",
    "epochs": 2,
    "batch-size": 16,
    "eps-inf": 0.05,
    "eps-2": 0.1,
    "natural-epochs": 0.5,
    "anneal-epochs": 1,
    "milestones": 1,
    "certify-methods": "IBP",
}
FLAGS = ["--no-progress", *(f"--{name}={value}" for name, value in SETTINGS.items())]


def tune(output, *more, data=None, flags=FLAGS):
    """Run the command, and return its exit code."""
    data = Path(output).parent / "toy.npz" if data is None else data
    if not data.exists():
        write_npz(data)
    return main(["tune", "--data", str(data), "--output", str(output), *flags, *map(str, more)])


def tune_in_a_process(output, trials):
    """Run the command without figures of single runs, which are slow."""
    import lirpa_multinorm.training.runlog as runlog

    runlog.learning_curves = lambda *_: None
    return tune(output, "--trials", trials)


def front(output):
    """Return what the front's file holds."""
    return json.loads((Path(output) / "front.json").read_text())


def trials(output):
    """Return the numbers of all finished trials."""
    return [point["trial"] for point in front(output)["trials"]]
