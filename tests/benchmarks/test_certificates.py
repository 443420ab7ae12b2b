"""Benchmarks of certificates.

What is falsified or lost is named, and the report counts every pair.
"""

from benchmarks import certificates, certification_speed, certified, optimized
from benchmarks.run import Places


def audited(falsified):
    return {
        "key": "run",
        "n": 10,
        "clean %": 90.0,
        "certified union %": 40.0,
        "sets": [
            {"set": "l_inf", "certified pairs": 6, "falsified": []},
            {"set": "l_2", "certified pairs": 4, "falsified": falsified},
        ],
    }


def test_a_falsified_certificate_is_named():
    assert certificates.problems([audited([])]) == []
    assert certificates.problems([audited([]), audited([7])]) == [
        "run, l_2: certified images [7] are falsified"
    ]


def test_the_report_counts_every_pair():
    _, pairs = certificates.tables([audited([7]), audited([])]).values()
    assert len(pairs) == 5 and pairs[-1] == {
        "run": "all",
        "set": "",
        "certified pairs": 20,
        "falsified": 1,
    }


def test_a_lost_certificate_must_be_found_by_the_default_cascade():
    row = {
        "key": "run",
        "only by the host": 2,
        "of these by the default cascade": 2,
        "host loop to ours": {"median": 5.0},
    }
    assert certification_speed.problems([row]) == []
    (result,) = certification_speed.problems([{**row, "of these by the default cascade": 1}])
    assert "2 pairs" in result and certification_speed.figures([row])["run"].better == "higher"


def test_published_networks_have_a_task_per_set():
    settings = {"networks": ["mnist_convsmall", "mnist_cnn_a_adv"], "n": 2, "branch_seconds": 0}
    keys = list(certified.tasks(settings, Places()))
    assert (
        len(keys) == 3 and sum("plain l_2" in key for key in keys) == 1
    )  # the plain ball is of l_2 alone


def test_looser_optimised_bounds_are_a_problem():
    row = {"key": "net", "mean lowest margin, ours": -1.0, "mean lowest margin, alpha-CROWN": -2.0}
    assert optimized.problems([row]) == []
    assert list(optimized.tasks({"networks": {"net": 1}, "iterations": 2}, Places())) == ["net"]
    for worse in (-3.0, float("nan")):
        assert len(optimized.problems([{**row, "mean lowest margin, ours": worse}])) == 1
