"""Benchmarks of cost and soundness: their tasks, the rows they give, and what they find wrong.

Nothing is timed.
"""

import importlib
import json

import pytest
import torch

from benchmarks import common, memory, scaling, soundness, speed, training_speed
from benchmarks.run import CONFIGS, Config, Places, names
from benchmarks.trained_case import trained_case
from lirpa_multinorm import host
from lirpa_multinorm.audit import GRAPHS
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import LOSSES

MODULES = ("speed", "scaling", "memory", "soundness", "training_speed")
OURS = [name for name in names() if Config.read(name).benchmark in MODULES]
TRAINED = {
    "network": "cnn_small",
    "in_shape": [1, 8, 8],
    "options": {"width": 1},
    "data": "digits",
    "n_train": 64,
    "eps": {"inf": 0.1, "2": 0.3},
    "train": {"loss": "natural", "epochs": 1, "batch_size": 32, "milestones": []},
}
NET = {"network": "cnn_small", "in_shape": [1, 8, 8], "options": {"width": 1}, "batch": 2}
CASE = {**NET, "method": "IBP", "clip": None, "passes": "forward and backward", "repeats": 2}
AUDIT = Config.read("soundness_host_0.3").settings
PEAKS = {
    "l_inf": [1.0, 9.0, 2.0],
    "l_2 ball": [4.0, 3.0, 5.0],
    "l_2 with pixel range": [8.0] * 3,
    "both": [6.0] * 3,
    "both, l_2 with pixel range": [12.0] * 3,
}


def expected_keys(config):
    """Return the keys that a configuration's settings announce."""
    settings = config.settings
    return {
        "speed": lambda: list(settings["cases"]),
        "scaling": lambda: list(settings["curves"]),
        "memory": lambda: list(settings["cases"]),
        "soundness": lambda: [
            f"{who}, {graph}" for who in ("host alone", "lirpa-multinorm") for graph in GRAPHS
        ],
        "training_speed": lambda: [f"batch {batch}" for batch in settings["batches"]],
    }[config.benchmark]()


def unique(pairs):
    """Return a JSON object's pairs as a dict, none of them lost."""
    assert len(dict(pairs)) == len(pairs), [name for name, _ in pairs]
    return dict(pairs)


def test_every_benchmark_has_its_configurations():
    assert set(OURS) == {
        "speed_short",
        "speed_one_norm",
        "speed_two_norms",
        "scaling",
        "memory",
        "memory_long",
        "soundness_host_0.3",
        "soundness_host_0.7.1",
        "training_speed_short",
        "training_speed",
        "training_speed_official",
    }
    assert {name for name in names("short") if name in OURS} == {
        "speed_short",
        "scaling",
        "memory",
        "soundness_host_0.3",
        "training_speed_short",
    }
    assert Config.read("training_speed_official").needs == ["official", "data_dir"]


@pytest.mark.parametrize("name", OURS)
def test_every_configuration_has_its_tasks(name):
    json.loads((CONFIGS / f"{name}.json").read_text(), object_pairs_hook=unique)
    config = Config.read(name)
    tasks = importlib.import_module(f"benchmarks.{config.benchmark}").tasks(
        config.settings, Places()
    )
    assert list(tasks) == expected_keys(config) and tasks
    assert all(map(callable, tasks.values()))


@pytest.mark.parametrize(
    "changed, host_calls",
    [
        ({}, {"host once", "host twice"}),
        ({"clip": [0, 1], "passes": "forward"}, {"host once", "host twice"}),
        ({"norm": "inf"}, {"host once"}),
        ({"norm": 2, "method": "CROWN", "passes": "forward"}, {"host once"}),
    ],
)
def test_a_speed_case_gives_its_ratio(changed, host_calls):
    ((key, task),) = speed.tasks({"cases": {"tiny": {**CASE, **changed}}}, Places()).items()
    row = {"key": key, **task()}
    assert set(row["timing"]) == {"ours"} | host_calls and row["settings"] == {**CASE, **changed}
    assert all(len(times["seconds"]) == 2 for times in row["timing"].values())
    assert len(row["ratio"]["quartiles"]) == 2
    assert speed.problems([row]) == []
    ((name, figure),) = speed.figures([row]).items()
    assert (name, figure.value, figure.better) == ("tiny", row["ratio"]["median"], "lower")


def test_the_ratio_is_to_as_many_host_calls_as_there_are_sets():
    row = speed.compare(CASE, "cpu")
    assert row["ratio"] == common.ratio(row["timing"], "ours", "host twice")
    assert row["ratio to one host call"] == common.ratio(row["timing"], "ours", "host once")


def test_looser_bounds_are_a_problem():
    rows = [{"key": "a", "looser": 0.0}, {"key": "b", "looser": 0.5}, {"key": "c", "looser": "NaN"}]
    assert [problem.partition(":")[0] for problem in speed.problems(rows)] == ["b", "c"]
    row = {"key": "curve", "sizes": [1, 2], "looser": [0.0, 0.5]}
    assert scaling.problems([row]) == ["curve at 2: our bounds are looser than the host's by 0.5"]


@pytest.mark.parametrize(
    "changed, message", [({"norm": 1}, "norm=1 "), ({"passes": "backward"}, "passes='backward'")]
)
def test_a_case_that_cannot_be_timed_says_why(changed, message):
    with pytest.raises(InvalidArgumentError, match=message):
        speed.compare({**CASE, **changed}, "cpu")


@pytest.mark.parametrize("over", ["batch", "width"])
def test_a_curve_has_slopes_and_ratios(over):
    curve = {"over": over, "sizes": [1, 2], "case": CASE}
    ((key, task),) = scaling.tasks({"curves": {"tiny": curve}}, Places()).items()
    row = {"key": key, **task()}
    assert set(row["slopes"]) == set(row["medians"]) == {"ours", "host twice"}
    assert len(row["ratios"]) == len(row["looser"]) == 2 and row["settings"] == curve
    assert row["slopes"]["ours"] == scaling.log_log_slope(row["sizes"], row["medians"]["ours"])
    assert scaling.problems([row]) == []
    assert scaling.figures([row])["tiny at 2"].value == row["ratios"][1]["median"]
    sizes, slopes = scaling.tables([row]).values()
    assert [line["size"] for line in sizes] == [1, 2] and slopes == [
        {"curve": "tiny", **row["slopes"]}
    ]


def test_a_curve_changes_its_size_alone():
    assert scaling.at_size({"over": "batch", "case": CASE}, 5) == {**CASE, "batch": 5}
    assert scaling.at_size({"over": "width", "case": CASE}, 5) == {**CASE, "options": {"width": 5}}


def test_the_slope_of_a_power_is_its_exponent():
    sizes = [1, 2, 8, 64]
    for exponent in (0.0, 1.0, 1.5):
        assert scaling.log_log_slope(
            sizes, [3 * size**exponent for size in sizes]
        ) == pytest.approx(exponent)
    with pytest.raises(InvalidArgumentError, match="at least two"):
        scaling.log_log_slope([4, 4], [1.0, 2.0])


@pytest.mark.parametrize(
    "task",
    [
        speed.tasks({"device": "cuda", "cases": {"tiny": CASE}}, Places())["tiny"],
        scaling.tasks(
            {
                "device": "cuda",
                "curves": {"tiny": {"over": "batch", "sizes": [1, 2], "case": CASE}},
            },
            Places(),
        )["tiny"],
        training_speed.tasks(
            {"device": "cuda", "case": TRAINED, "batches": [2], "repeats": 2}, Places()
        )["batch 2"],
    ],
)
def test_a_gpu_that_is_not_there_is_named(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgumentError, match="device='cuda'.*use 'cpu'"):
        task()


def test_timing_waits_around_every_call():
    order = []
    common.interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        repeats=1,
        warmup=1,
        synchronize=lambda: order.append("wait"),
    )
    assert order == 2 * ["wait", "a", "wait", "wait", "b", "wait"]
    assert common.waiting(torch.device("cpu")) is None


def test_peak_memory_is_compared_with_the_larger_single_norm():
    assert memory.ratios(PEAKS) == {"ratio": 1.5, "ratio with pixel range": 1.5}


def test_a_memory_row_has_all_sets(monkeypatch):
    monkeypatch.setattr(memory, "in_process", lambda case, sets: PEAKS[sets][0])
    task = memory.tasks({"repeats": 2, "cases": {"tiny": CASE}}, Places())["tiny"]
    row = {"key": "tiny", **task()}
    assert row["MiB"] == {sets: [values[0]] * 2 for sets, values in PEAKS.items()}
    assert {name: figure.value for name, figure in memory.figures([row]).items()} == {
        "tiny: ratio": 1.5,
        "tiny: ratio with pixel range": 1.5,
    }
    assert memory.problems([row]) == []
    row["MiB"]["both"][1] = 0.0
    assert memory.problems([row]) == ["tiny, both: a peak of 0.0 MiB was measured"]


def test_a_failed_measurement_says_why():
    with pytest.raises(RuntimeError, match="no model 'nothing'"):
        memory.in_process({**CASE, "network": "nothing"}, "l_inf")


def audited(graph, who="lirpa-multinorm"):
    """Return the row of one task of the audit, with one method."""
    settings = {**AUDIT, "host": host.version, "methods": ["IBP"]}
    key = f"{who}, {graph}"
    return {"key": key, **soundness.tasks(settings, Places())[key]()}


def test_an_audit_tells_the_host_from_us():
    """The host alone ignores what comes before the first Linear or Conv for an l_2 ball."""
    ours, theirs = audited("negate"), audited("negate", "host alone")
    assert [cell["norm"] for cell in ours["cells"]] == ["l_inf", "l_2", "l_1"]
    assert all(cell["failure"] is None for cell in ours["cells"])
    assert soundness.problems([ours, theirs]) == []
    table = soundness.counts([ours, theirs])
    assert (
        table["lirpa-multinorm"]["l_2"]["violated"] == 0
        and table["lirpa-multinorm"]["l_2"]["bounds"] == 1
    )
    assert table["host alone"]["l_2"]["graphs violated"] == ["negate"]
    (lines,) = soundness.tables([ours, theirs]).values()
    assert {(line["who"], line["norm"]): line["violated"] for line in lines}[
        "host alone", "l_2"
    ] == 1


def test_violated_and_missing_bounds_of_ours_are_problems():
    cells = [
        {"method": "IBP", "norm": "l_2", "violation": value, "failure": failure}
        for value, failure in [(1e-5, None), (0.5, None), ("Infinity", None), (None, "ValueError")]
    ]
    row = {"key": "k", "who": "lirpa-multinorm", "graph": "mlp", "cells": cells}
    assert soundness.problems([row]) == [
        "k, IBP, l_2: violated by 0.5",
        "k, IBP, l_2: violated by Infinity",
        "k, IBP, l_2: no bound, ValueError",
    ]
    assert soundness.counts([row])["lirpa-multinorm"]["l_2"] == {
        "bounds": 3,
        "violated": 2,
        "no bound": 1,
        "largest": float("inf"),
        "graphs violated": ["mlp"],
    }
    assert soundness.problems([{**row, "who": "host alone"}]) == []


def test_results_of_another_host_are_refused():
    task = soundness.tasks({**AUDIT, "host": "0.0"}, Places())["lirpa-multinorm, mlp"]
    with pytest.raises(
        InvalidArgumentError, match=f"host='0.0': auto_LiRPA {host.version} is loaded"
    ):
        task()


def test_every_loss_has_its_training_step(monkeypatch):
    monkeypatch.setattr(training_speed, "OFFICIAL_STEPS", 1)
    also = {
        "bf": {"loss": "sabr", "attack": {"precision": "bfloat16"}},
        "lipschitz": {"loss": "ibp", "region_2": "lipschitz"},
    }
    settings = {"case": TRAINED, "batches": [2], "repeats": 2, "warmup": 1, "also": also}
    row = training_speed.tasks(settings, Places())["batch 2"]()
    assert set(row["timing"]) == ({*LOSSES, *also} - {"linf_dist"})
    assert set(row["ratio to natural"]) == ({*LOSSES, *also} - {"linf_dist"}) - {"natural"}
    assert set(row["ratio to joint"]) == ({*LOSSES, *also} - {"linf_dist"}) - {"joint"}
    assert row["settings"]["batch"] == 2 and row["network"]["images"] == 64
    figure = training_speed.figures([{"key": "batch 2", **row}])["batch 2: max"]
    assert figure.value == row["ratio to natural"]["max"]["median"]


def test_the_loss_that_an_attack_reaches_stands_beside_its_time():
    """Attacks only: the natural loss and a branch by its Lipschitz constant alone have none."""
    case = trained_case(TRAINED, Places())
    wanted = {
        "natural": {"loss": "natural"},
        "joint": {"loss": "joint"},
        "one step": {"loss": "sabr", "attack": {"steps": 1}},
        "ibp": {"loss": "ibp", "region_2": "lipschitz"},
    }
    reached = training_speed.attacked_losses(case, wanted, {}, 0.4, torch.device("cpu"))
    assert set(reached) == {"no attack", "joint", "one step"}
    linf, l2 = reached["joint"].values()
    assert linf > reached["one step"][case.sets[0].title()] > reached["no attack"]["inputs"]
    assert linf > l2 > reached["no attack"]["inputs"]


def test_steps_are_of_the_training_images_in_turn():
    case = trained_case(TRAINED, Places())
    batches = case.batches(24, 8, torch.device("cpu"))
    assert [len(y) for _, y in batches] == [24, 24]
    assert torch.equal(torch.cat([x for x, _ in batches]), case.x[:48])
    assert torch.equal(torch.cat([y for _, y in batches]), case.y[:48])


def test_a_step_cheaper_than_its_part_and_a_network_without_training_are_problems():
    row = {
        "key": "k",
        "ratio to natural": {"max": {"median": 5.0}, "joint": {"median": 0.9}},
        "network": {"accuracy on training images": 0.9},
    }
    assert training_speed.problems([row]) == [
        "k, joint: 0.9 times the natural step, which is a part of it"
    ]
    row = {"key": "k", "ratio to natural": {}, "network": {"accuracy on training images": 0.1}}
    assert training_speed.problems([row]) == [
        "k: the network is right on 0.1 of its own images; train it longer"
    ]
