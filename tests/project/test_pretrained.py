"""Pretrained networks: names, cards, SHA-256, and certificates that can be had again."""

import hashlib
import json
import shutil

import pytest
import torch

from lirpa_multinorm import CertifySettings, certify, pretrained, pretrained_names
from lirpa_multinorm.cli import main
from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.errors import CheckpointError, DatasetNotFoundError, InvalidArgumentError
from lirpa_multinorm.networks import NETWORK_FILES, card_text
from lirpa_multinorm.networks.files import manifest, network_folder
from tests.cli.runs import error_of

DIGITS = "digits-union-0.1-0.4"
#: Stages without branch and bound, which take seconds.
QUICK = CertifySettings(["IBP", "Lipschitz", "CROWN-IBP", "CROWN"], attack=None)


def written(name, file="certified.json"):
    return json.loads((network_folder(name) / file).read_text())


def first_images(name):
    """The test images whose statuses were written one by one; skips where they are not here."""
    try:
        data = load(written(name)["data"], download=False)
    except (DatasetNotFoundError, InvalidArgumentError) as error:
        pytest.skip(str(error))
    n = written(name)["first"]["n"]
    return to_unit(data.x_test[:n]), data.y_test[:n]


def copied(name, folder):
    shutil.copytree(network_folder(name), folder / name)
    return folder / name


@pytest.mark.parametrize("name", pretrained_names())
def test_a_network_comes_with_its_sets_and_its_card(name):
    actual, certified = pretrained(name), written(name)
    assert actual.name == name == actual.card["network"]
    assert not actual.model.training and actual.model is actual.checkpoint.model
    result, card = certified["result"], actual.card
    assert list(card["sets"]) == [item.label for item in actual.perturbations]
    assert list(card["certified"].values()) == result["certified"]
    assert (card["clean"], card["n"]) == (result["clean"], result["n"])
    assert card["certified union"] == result["certified_union"]
    assert card["seed"] == actual.checkpoint.config.seed
    text = card_text(card)
    assert f"{100 * card['certified union']:.1f}" in text and "BSD-3-Clause" in text
    assert all(method in text for method in card["methods"])


@pytest.mark.parametrize("name", pretrained_names())
def test_the_manifest_is_that_of_the_files(name):
    entry = manifest()[name]
    assert tuple(entry["sha256"]) == NETWORK_FILES
    for file, expected in entry["sha256"].items():
        assert hashlib.sha256((network_folder(name) / file).read_bytes()).hexdigest() == expected


def test_every_folder_of_networks_stands_in_the_manifest():
    folder = network_folder(DIGITS).parent
    assert {path.parent.name for path in folder.glob("*/checkpoint.pt")} == set(manifest())


def test_the_wheel_holds_several_megabytes_at_most():
    chosen = [name for name, entry in manifest().items() if entry["wheel"]]
    sizes = [(network_folder(name) / "checkpoint.pt").stat().st_size for name in chosen]
    assert DIGITS in chosen and len(chosen) >= 3 and sum(sizes) < 8 << 20


@pytest.mark.parametrize("name", pretrained_names())
def test_a_part_certified_again_agrees_with_the_card(name):
    x, y = first_images(name)
    result = pretrained(name)
    again = certify(result.model, x[:8], y[:8], result.perturbations, QUICK, progress=False)
    for now, before in zip(again.status, written(name)["first"]["status"]):
        for status, recorded in zip(now, before):
            assert (status == "misclassified") == (recorded == "misclassified")
            assert status != "certified" or recorded == "certified"
    assert any("certified" in row for row in again.status)


def test_digits_are_certified_again_by_the_whole_cascade():
    x, y = first_images(DIGITS)
    result = pretrained(DIGITS)
    again = certify(result.model, x, y, result.perturbations, progress=False)
    assert again.status == written(DIGITS)["first"]["status"]
    counts = written(DIGITS)["result"]["counts"]
    for row, count in zip(again.status, counts):
        assert row.count("certified") <= count["certified"]


@pytest.mark.parametrize("file", NETWORK_FILES)
def test_a_damaged_file_is_refused_by_its_hash(file, tmp_path):
    folder = copied(DIGITS, tmp_path)
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file} has the SHA-256 .* damaged or another"):
        pretrained(DIGITS, folder)


def test_a_swapped_file_is_refused_by_its_hash(tmp_path):
    folder = copied(DIGITS, tmp_path)
    other = next(name for name in pretrained_names() if name != DIGITS)
    shutil.copyfile(network_folder(other) / "checkpoint.pt", folder / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="checkpoint.pt has the SHA-256"):
        pretrained(DIGITS, folder)


def test_a_missing_file_is_named(tmp_path):
    folder = copied(DIGITS, tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        pretrained(DIGITS, folder)


@pytest.mark.parametrize(
    "name, near", [("digits-unoin-0.1-0.4", DIGITS), ("DIGITS", DIGITS), (None, DIGITS), ("", "")]
)
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(InvalidArgumentError, match=f"nearest: .*{near}.*lists all"):
        pretrained(name)


def test_loading_leaves_torchs_generators_alone():
    before = torch.get_rng_state()
    pretrained(DIGITS)
    assert torch.equal(before, torch.get_rng_state())


def test_the_command_lists_all_and_prints_a_card(capsys):
    assert main(["pretrained"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in pretrained_names())
    assert main(["pretrained", DIGITS]) == 0
    assert capsys.readouterr().out.strip() == card_text(pretrained(DIGITS).card)
    assert "nearest: digits" in error_of(capsys, main(["pretrained", "digits"]))


def test_the_command_of_a_card_repeats_it(capsys):
    line = card_text(pretrained(DIGITS).card).splitlines()[-1].split()
    words = [*line[1 : line.index("--n-test")], "--n-test", "2", "--no-progress"]
    assert main(words) == 0
    assert "certified union" in capsys.readouterr().out
