"""Runs of the plain loop, for its tests."""

import dataclasses
import json

import torch

from lirpa_multinorm.training import train
from tests.toy import CONFIG, SETS, SPEC, data


def run(output=None, images=None, sets=SETS, spec=SPEC, overwrite=False, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return train(
        spec,
        data() if images is None else images,
        sets,
        config,
        output,
        progress=False,
        overwrite=overwrite,
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(first, second):
    item, other = first.state_dict(), second.state_dict()
    return list(item) == list(other) and all(torch.equal(item[name], other[name]) for name in item)
