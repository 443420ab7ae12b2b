"""Recorded certifications.

Killed, resumed, sharded and merged runs end with the records of an uninterrupted one.
"""

import dataclasses
import multiprocessing
import os
import random
import signal
import time

import pytest

from lirpa_multinorm import certify, merge_records, read_records
from lirpa_multinorm.certification import NOT_RUN, cascade, run
from lirpa_multinorm.errors import InvalidArgumentError, RecordsError
from tests.certification.recorded_runs import SETS, SETTINGS, content, into, problem, same


def test_records_hold_what_certify_returns(whole):
    model, x, y = problem()
    result, recorded = certify(model, x, y, SETS, SETTINGS), read_records(whole.parent)
    assert same(recorded, result) and recorded.seconds.gt(0).all()
    assert recorded.summary() == result.summary()
    assert {status for row in result.status for status in row} == {
        "certified",
        "falsified",
        "unknown",
        "misclassified",
    }
    header, *lines = content(whole)
    assert [line["index"] for line in lines] == list(range(30)) and [
        line["label"] for line in lines
    ] == y.tolist()
    assert [item["title"] for item in header["sets"]] == [
        "l_inf ball of radius 0.03 within [0, 1]",
        "l_2 ball of radius 0.1 within [0, 1]",
    ]
    for (place, image), point in recorded.adversarial.items():
        assert (
            SETS[place].contains(point[None], x[image : image + 1]).all()
            and model(point).argmax() != y[image]
        )


def test_batches_are_on_disk_as_they_come(tmp_path, monkeypatch):
    counts, certify_batch = [], run.Cascade.certify

    def spy(cascade, images):
        counts.append(len((tmp_path / "records.jsonl").read_text().splitlines()) - 1)
        return certify_batch(cascade, images)

    monkeypatch.setattr(run.Cascade, "certify", spy)
    into(tmp_path)
    assert counts == list(range(0, 30, 4))


def interrupt_after(monkeypatch, batches):
    certify_batch, calls = run.Cascade.certify, []

    def interrupted(cascade, images):
        calls.append(images.tolist())
        if len(calls) > batches:
            raise KeyboardInterrupt
        return certify_batch(cascade, images)

    monkeypatch.setattr(run.Cascade, "certify", interrupted)
    return calls


@pytest.mark.parametrize("batches", [0, 3, 7])
def test_an_interrupted_run_goes_on_where_it_was(batches, tmp_path, whole):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, batches)
        into(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt_after(patch, 100)
        into(tmp_path, resume=True)
    assert [call[0] for call in calls] == list(range(4 * batches, 30, 4))  # no batch twice
    assert content(tmp_path / "records.jsonl") == content(whole)


def test_a_finished_run_does_nothing_more(tmp_path, whole, monkeypatch):
    into(tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()
    calls = interrupt_after(monkeypatch, 0)
    assert same(into(tmp_path, resume=True), read_records(whole)) and not calls
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_records_are_not_written_over(tmp_path):
    into(tmp_path)
    with pytest.raises(RecordsError, match="holds records of 30 images; go on with --resume"):
        into(tmp_path)


@pytest.mark.parametrize("count", [2, 3])
def test_shards_merge_to_the_whole(count, tmp_path, whole):
    parts = [into(tmp_path, shard=(place, count)) for place in reversed(range(count))]
    assert {path.name for path in tmp_path.glob("r*")} == {
        "records.jsonl",
        *(f"records.{place}-of-{count}.jsonl" for place in range(count)),
    }
    assert content(tmp_path / "records.jsonl") == content(whole)
    assert same(parts[-1], read_records(whole))  # the last one has merged
    assert [i for i in range(30) if parts[0].status[0][i] != NOT_RUN] == [
        i for i in range(30) if i // 4 % count == count - 1
    ]


def test_what_is_missing_from_a_merge_is_said_and_can_be_done_later(tmp_path, whole):
    first = into(tmp_path, shard=(0, 2))
    with pytest.warns(UserWarning, match="14 of 30 images have no record yet"):
        merge_records(tmp_path)
    assert same(read_records(tmp_path), first) and first.summary()["not_run"][:5] == [
        4,
        5,
        6,
        7,
        12,
    ]
    into(tmp_path, resume=True)  # the merged file is a run that has not finished
    assert content(tmp_path / "records.jsonl") == content(whole)


def test_shards_of_different_runs_are_not_merged(tmp_path):
    into(tmp_path / "a", shard=(0, 2))
    into(tmp_path / "b", dataclasses.replace(SETTINGS, seed=1), shard=(1, 2))
    os.rename(tmp_path / "b" / "records.1-of-2.jsonl", tmp_path / "a" / "records.1-of-2.jsonl")
    with pytest.raises(RecordsError, match="settings.seed: 1 there, 0 now"):
        merge_records(tmp_path / "a")


def test_nothing_to_merge(tmp_path):
    with pytest.raises(RecordsError, match="holds no records"):
        merge_records(tmp_path)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(shard, tmp_path):
    with pytest.raises(InvalidArgumentError, match=f"shard={shard[0]}/{shard[1]}"):
        into(tmp_path, shard=shard)


def test_what_the_total_limit_has_left_is_done_on_resuming(tmp_path, whole, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(cascade, "clock", lambda: float(next(ticks)))
    limited = into(tmp_path, dataclasses.replace(SETTINGS, total_time_limit=60))
    left = limited.summary()["not_run"]
    assert 0 < len(left) < 30 and left[-1] == 29
    assert len(content(tmp_path / "records.jsonl")) == 31  # they are named in the file
    result = into(tmp_path, dataclasses.replace(SETTINGS, total_time_limit=1e6), resume=True)
    assert not result.summary()["not_run"] and content(tmp_path / "records.jsonl") == content(whole)


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def slowly(folder):
    """A run in which kills fall between and within batches."""
    certify_batch = run.Cascade.certify

    def slowed(cascade, images):
        time.sleep(0.01)
        return certify_batch(cascade, images)

    run.Cascade.certify = slowed
    into(folder, resume=True)


@pytest.mark.slow
@pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(),
    reason="starting anew takes too long",
)
def test_kills_at_random_moments_lose_nothing(tmp_path, whole):
    chance, kills, lengths, path = random.Random(0), 0, set(), tmp_path / "records.jsonl"
    processes = multiprocessing.get_context(
        "forkserver"
    )  # autograd refuses to work in forks of a process that used it
    processes.set_forkserver_preload(["lirpa_multinorm"])
    for turn in range(6):
        child = processes.Process(target=slowly, args=(tmp_path,))
        child.start()
        while (
            child.is_alive() and lines_of(path) <= 4 * turn
        ):  # further and further, however slow the machine
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        lengths.add(lines_of(path))
    into(tmp_path, resume=True)
    assert kills > 2 and len(lengths) > 2
    assert content(path) == content(whole) and not list(tmp_path.glob(".*.tmp"))
