"""Recorded certifications of damaged files, and of folders that belong to another run."""

import dataclasses
import json

import pytest

from lirpa_multinorm import AttackSettings, PerturbationL2Box, certify_to
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.errors import OutputFolderError, RecordsError
from lirpa_multinorm.utils.files import exclusive
from tests.certification.recorded_runs import SETS, SETTINGS, content, into, problem


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


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda change: change.__name__)
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
@pytest.mark.parametrize("change", FOREIGN, ids=lambda change: change.__name__)
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
