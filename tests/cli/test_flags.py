"""Flags come from settings and registries: what is registered is on the command line."""

import re
from pathlib import Path

import pytest
from torch import nn

from lirpa_multinorm.cli import main
from lirpa_multinorm.cli.parser import Parser
from lirpa_multinorm.data import AUGMENTATIONS
from lirpa_multinorm.experiments.flags import add_setting_arguments, given
from lirpa_multinorm.experiments.settings import merge, nested, sets_of
from lirpa_multinorm.losses import LOSSES, MultiNormLoss, register_loss
from lirpa_multinorm.losses.mixing import MIXES, mtl
from lirpa_multinorm.losses.options import terms_for
from lirpa_multinorm.models import MODELS
from lirpa_multinorm.perturbations import NORMS
from tests.cli.runs import train_on

COMMANDS = ("train", "tune", "finetune", "certify", "export", "import", "report")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-norm.md"


def help_of(command, capsys):
    """The help of a command, on one line."""
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def refused(capsys, *arguments):
    """What is printed for arguments that cannot be parsed."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(arguments))
    assert exit_info.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def extended():
    """A norm, a loss, a network, a mix and an augmentation of somebody else's."""
    tables = [NORMS, LOSSES, MODELS, MIXES, AUGMENTATIONS]
    before = [dict(table) for table in tables]
    norm = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(norm, str(PAGE), "exec"), {})

    @register_loss("tempered")
    def tempered(perturbations, temperature=0.1, seed: int = 1, **options):
        """Build the loss.

        Args:
            perturbations: The sets.
            temperature: Of the soft maximum.
            seed: Of the loss alone.
            **options: Of its terms.
        """
        return MultiNormLoss(terms_for(perturbations, options), "max")

    def ladder(in_shape, num_classes, steps=2, boost: float = 1.0):
        """Build linear layers.

        Args:
            in_shape: Shape of one image.
            num_classes: Number of outputs.
            steps: Hidden layers.
            boost: Factor on the first weights.
        """
        size = in_shape[0] * in_shape[1] * in_shape[2]
        hidden = [layer for _ in range(steps) for layer in (nn.Linear(size, size), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(size, num_classes))

    MODELS["ladder"] = ladder
    MIXES["mine"] = mtl
    AUGMENTATIONS["mirror"] = None
    yield
    for table, content in zip(tables, before):
        table.clear()
        table.update(content)


def test_what_is_registered_stands_in_the_help(extended, capsys):
    text = help_of("train", capsys)
    for words in (
        "--eps-3 X radius of the l_3 set",
        "--ratio-3",
        "--region-3",
        "--taps-layers-3",
        "--temperature X temperature of the soft maximum (default: 0.1)",
        "--loss-seed N seed of the loss alone (default: 1)",
        "--steps N hidden layers (default: the network's own)",
        "--boost X factor on the first weights",
    ):
        assert words in text
    assert re.search(r"rows of the table: [^()]*, tempered \(", text)
    assert re.search(r"--model NAME network: [^()]*, ladder \(", text)
    assert re.search(r"--mix-inf NAME .*: mtl, cc, exp, mine \(", text)
    assert re.search(r"--augment NAME [^()]*, mirror \(", text)
    assert "--eps-3 X" in help_of("certify", capsys) and "--eps-3 X" in help_of("export", capsys)
    assert "certify against the sets of these norms only: inf, 2, 1, 3" in help_of(
        "certify", capsys
    )


def test_what_is_registered_can_be_asked_for(extended, file, tmp_path, capsys):
    arguments = ["--losses", "tempered", "--eps-3", "1/8", "--region-3", "ball", "--ratio-3", "0.5"]
    arguments += ["--temperature", "0.2", "--loss-seed", "4", "--augment", "mirror", "--seed", "7"]
    model = ["--model", "ladder", "--steps", "1", "--boost", "2", "--mix-3", "mine"]
    assert train_on(file, tmp_path, *arguments, *model, "--dry-run") == 0
    assert "l_3 radius" in capsys.readouterr().out


def test_values_of_what_is_registered_lead_to_its_settings(extended):
    parser = Parser()
    add_setting_arguments(parser)
    words = ["--eps-3=1/8", "--ratio-3=0.5", "--temperature=0.2", "--loss-seed=4", "--steps=1"]
    settings = nested(given(parser.parse_args(words)))
    assert settings == {
        "eps": {"3": 0.125},
        "train": {"loss_options": {"ratio_3": 0.5, "temperature": 0.2, "seed": 4}},
        "model": {"options": {"steps": 1}},
    }
    sets = sets_of(merge({"inf": 0.1}, settings["eps"]))
    assert [(ball.norm, ball.eps) for ball in sets] == [(float("inf"), 0.1), (3, 0.125)]


def test_nothing_of_it_is_there_otherwise(capsys):
    text = help_of("train", capsys)
    assert not any(word in text for word in ("--eps-3", "tempered", "ladder", "mirror", "mine,"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_sentence_and_its_default(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    entries = re.split(r"\n  (?=-)", text)[1:]
    for entry in entries:
        words = " ".join(entry.split("\n\n")[0].split())
        if not words.startswith("-h"):
            assert re.search(r"\(.*(default: |required)", words), words
            assert not re.search(r"[A-Z]\.[A-Z]", words), words  # a raw path as metavar
    assert len(entries) > 1


@pytest.mark.parametrize("word", ["8/255", "0.03137254901960784"])
def test_radii_may_be_fractions(word):
    parser = Parser()
    add_setting_arguments(parser, ["eps."])
    assert given(parser.parse_args(["--eps-inf", word])) == {"eps.inf": 8 / 255}


@pytest.mark.parametrize("word", ["8/0", "eight", "1/2/3"])
def test_what_is_no_radius_is_refused(word, capsys):
    message = refused(capsys, "train", "--output", "x", "--eps-2", word)
    assert f"--eps-2: {word!r} is neither a number nor a fraction such as 8/255" in message


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["train", "--output", "x", "--eps_inf", "1"],
            "no flag --eps_inf; did you mean --eps-inf?",
        ),
        (["train", "--output", "x", "--eps_2=1"], "no flag --eps_2; did you mean --eps-2?"),
        (["certify", "x.pt", "--metods", "IBP"], "no flag --metods; did you mean --methods?"),
        (["finetune", "x.pt", "--output", "x", "--learning_rate", "1"], "mean --learning-rate?"),
        (["train", "--output", "x", "--region-2", "bal"], "'bal' is unknown; did you mean 'ball'?"),
        (["train", "--output", "x", "--losses", "Mx"], "'Mx' is unknown; did you mean 'Max'?"),
        (["certify", "x.pt", "--norms", "3"], "'3' is unknown; use inf, 2"),
        (["train", "--output", "x", "--xyzzy"], "there is no flag --xyzzy\n"),
        (["train", "--output", "x", "word"], "unrecognized arguments: word"),
    ],
    ids=lambda value: "_".join(value[-2:]) if isinstance(value, list) else "",
)
def test_typing_errors_get_a_hint(arguments, words, capsys):
    message = refused(capsys, *arguments)
    assert words in message and len(message.splitlines()) == 2
    assert "--help explains the flags" in message
