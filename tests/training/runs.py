"""A short run in which everything takes part that a resumed run must remember."""

import dataclasses
import json

import torch

from lirpa_multinorm.training import ModelSpec, Projection, Schedule, TrainConfig, train
from tests.toy import SETS, data

SPEC = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2})  # with BatchNorm
OPTIONS = {"ratio_2": 0.5, "region_2": "ball", "attack": {"steps": 2}}
CONFIG = TrainConfig(
    loss="cure",
    loss_options={**OPTIONS, "eta": 0.5},
    epochs=5,
    batch_size=8,
    learning_rate=0.01,
    milestones=(4,),
    l1=1e-4,
    schedule=Schedule(1, 1, 0.5, 0.25),
    regularizer=0.5,
    initialization="shi",
    projection=Projection(0.5),
    clip_norm=5.0,
    average_from=3,
    precise_bn=True,
    augment="cifar",
)
STEPS = 3  # per epoch


def run(
    output=None,
    resume=False,
    images=None,
    spec=SPEC,
    sets=SETS,
    initial=None,
    overwrite=False,
    extend=False,
    **changes,
):
    images = data(8 * STEPS + 2) if images is None else images
    return train(
        spec,
        images,
        sets,
        dataclasses.replace(CONFIG, **changes),
        output,
        progress=False,
        initial=initial,
        resume=resume,
        overwrite=overwrite,
        extend=extend,
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same(first, second):
    single, other = (dict(model.state_dict().items()) for model in (first, second))
    return list(single) == list(other) and all(
        torch.equal(single[name], other[name]) for name in single
    )
