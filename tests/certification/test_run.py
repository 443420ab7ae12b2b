"""Recorded certifications.

Killed, resumed, sharded and merged runs end with the records of an uninterrupted one.
"""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    AttackSettings,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    certify,
    certify_to,
    merge_records,
    read_records,
)
from lirpa_multinorm.certification import CERTIFIED, NOT_RUN, cascade, run
from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError, RecordsError
from lirpa_multinorm.utils.files import exclusive

SETS = [PerturbationLinf(0.03), PerturbationL2Box(0.1)]
SETTINGS = CertifySettings(batch_size=4, attack=AttackSettings(steps=5, restarts=2))


def problem(count=30):
    """A network and images on which every usual status occurs."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(2)
        x = torch.rand(count, 6)
        model[2].bias.sub_(model(x).mean(0))
        y = model(x).argmax(1)
        y[::7] = (y[::7] + 1) % 3
    return model, x, y


def into(folder, settings=SETTINGS, sets=SETS, **options):
    return certify_to(folder, *problem(), sets, settings, **options)


def content(path):
    """The lines of a file, timings and environment aside."""
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    header.pop("environment")
    for line in lines:
        assert line.pop("seconds") >= 0
    return [header, *lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    into(folder)
    return folder / "records.jsonl"


def same(one, other):
    return (
        one.status == other.status
        and one.method == other.method
        and torch.equal(one.margin, other.margin)
        and torch.equal(one.prediction, other.prediction)
        and torch.equal(one.correct, other.correct)
        and one.errors == other.errors
        and one.adversarial.keys() == other.adversarial.keys()
        and all(
            torch.equal(point, other.adversarial[key]) for key, point in one.adversarial.items()
        )
    )


def test_records_hold_what_certify_returns(whole):
    model, x, y = problem()
    found, recorded = certify(model, x, y, SETS, SETTINGS), read_records(whole.parent)
    assert same(recorded, found) and recorded.seconds.gt(0).all()
    assert recorded.summary() == found.summary()
    assert {status for row in found.status for status in row} == {
        "certified",
        "falsified",
        "unknown",
        "misclassified",
    }
    header, *lines = content(whole)
    assert [line["index"] for line in lines] == list(range(30)) and [
        line["label"] for line in lines
    ] == y.tolist()
    assert [one["title"] for one in header["sets"]] == [
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


# --- damage ---------------------------------------------------------------------------------------


def cut(lines):
    return lines[:7] + [lines[7][:20]]


def cut_at_the_line_break(lines):
    return lines[:9] + [lines[9][:-1]]


def spoil_one(lines):
    return [*lines[:5], b"\xff\x00 no record\n", *lines[6:]]


def certified_without_margin(lines):
    spoiled = lines[:]
    for place, line in enumerate(lines):
        if b'"certified"' in line:
            record = json.loads(line)
            record["sets"][0].update(status=CERTIFIED, margin="NaN")
            spoiled[place] = json.dumps(record).encode() + b"\n"
            return spoiled


def repeat(lines):
    return lines[:6] + lines[3:6] + lines[6:]


def shuffle(lines):
    return lines[:1] + lines[:0:-1]


DAMAGE = {
    cut: 1,
    cut_at_the_line_break: 0,
    spoil_one: 1,
    certified_without_margin: 1,
    repeat: 0,
    shuffle: 0,
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
def test_whole_lines_of_a_damaged_file_are_kept(damage, tmp_path, whole, recwarn):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(damage(whole.read_bytes().splitlines(keepends=True))))
    before = {
        line for line in whole.read_bytes().splitlines() if line in path.read_bytes().splitlines()
    }
    into(tmp_path, resume=True)
    said = [str(one.message) for one in recwarn if "damaged" in str(one.message)]
    assert len(said) == DAMAGE[damage] and all(
        str(path) in one and "1 damaged line left out" in one for one in said
    )
    assert content(path) == content(whole) and before <= set(path.read_bytes().splitlines())


def test_records_behind_a_damaged_header_are_put_aside(tmp_path, whole):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"x" + whole.read_bytes())
    with pytest.warns(UserWarning, match="31 damaged lines left out, 0 whole records kept"):
        into(tmp_path, resume=True)
    assert content(path) == content(whole)
    assert (tmp_path / "records.jsonl.damaged").read_bytes() == b"x" + whole.read_bytes()


def test_an_empty_file_is_a_run_that_has_not_begun(tmp_path, whole):
    (tmp_path / "records.jsonl").touch()
    into(tmp_path)
    assert content(tmp_path / "records.jsonl") == content(whole)


# --- another run's folder -------------------------------------------------------------------------


def other_weights(model, x, y, sets, settings):
    model[0].bias.data[0] += 1e-3
    return model, x, y, sets, settings


def other_data(model, x, y, sets, settings):
    return model, x.flip(0), y, sets, settings


def other_labels(model, x, y, sets, settings):
    return model, x, (y + 1) % 3, sets, settings


def fewer_images(model, x, y, sets, settings):
    return model, x[:20], y[:20], sets, settings


def plain_ball(model, x, y, sets, settings):
    return model, x, y, [sets[0], PerturbationL2Box(0.1, clip=None)], settings


def one_set(model, x, y, sets, settings):
    return model, x, y, sets[:1], settings


def more_steps(model, x, y, sets, settings):
    return (
        model,
        x,
        y,
        sets,
        dataclasses.replace(settings, attack=AttackSettings(steps=6, restarts=2)),
    )


def other_methods(model, x, y, sets, settings):
    return model, x, y, sets, dataclasses.replace(settings, methods=["IBP"])


FOREIGN = {
    other_weights: "model_sha256: '",
    other_data: "data_sha256: '",
    other_labels: "data_sha256: '",
    fewer_images: "n: 30 there, 20 now",
    plain_ball: r"sets.1.clip.0: 0.0 there, None now",
    one_set: "sets.1.norm: '2' there",
    more_steps: "settings.attacks.0.steps: 5 there, 6 now",
    other_methods: "settings.methods.1: 'Lipschitz' there, None now",
}


@pytest.mark.parametrize("resume", [True, False], ids=["resume", "anew"])
@pytest.mark.parametrize("change", FOREIGN, ids=lambda one: one.__name__)
def test_a_folder_of_another_run_is_refused(change, resume, tmp_path, whole):
    path = tmp_path / "records.jsonl"
    path.write_bytes(whole.read_bytes())
    *arguments, settings = change(*problem(), SETS, SETTINGS)
    for shard in (None, (0, 2)):
        with pytest.raises(RecordsError, match=FOREIGN[change]) as caught:
            certify_to(tmp_path, *arguments, settings, resume=resume, shard=shard)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == whole.read_bytes()


def test_two_processes_cannot_write_the_same_file(tmp_path):
    into(tmp_path, shard=(0, 2))
    with (
        exclusive(tmp_path / "records.1-of-2.jsonl"),
        pytest.raises(OutputFolderError, match="another process is writing.*records.1-of-2.jsonl"),
    ):
        into(tmp_path, shard=(1, 2))
    into(tmp_path, shard=(1, 2))  # nothing is left of the lock


# --- shards ---------------------------------------------------------------------------------------


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


# --- limits ---------------------------------------------------------------------------------------


def test_what_the_total_limit_has_left_is_done_on_resuming(tmp_path, whole, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(cascade, "clock", lambda: float(next(ticks)))
    limited = into(tmp_path, dataclasses.replace(SETTINGS, total_time_limit=60))
    left = limited.summary()["not_run"]
    assert 0 < len(left) < 30 and left[-1] == 29
    assert len(content(tmp_path / "records.jsonl")) == 31  # they are named in the file
    found = into(tmp_path, dataclasses.replace(SETTINGS, total_time_limit=1e6), resume=True)
    assert not found.summary()["not_run"] and content(tmp_path / "records.jsonl") == content(whole)


# --- kill -9 --------------------------------------------------------------------------------------


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
