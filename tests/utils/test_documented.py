"""What signatures and docstrings say is read as it is written."""

from typing import Optional

import pytest

from lirpa_multinorm.losses import LossTerm
from lirpa_multinorm.training import Projection, Schedule, TrainConfig
from lirpa_multinorm.utils.documented import argument_sentences, documented_arguments


def function(
    images,
    width: int = 3,
    share=0.5,
    sizes=(1, 2),
    seed: Optional[int] = None,
    names: "str | None" = None,
    nothing=None,
    *rest,
    **options,
):
    """Do something.

    Args:
        images: What it is done to: ``(B, C)``. More about it.
        width: Of the kernel, see :class:`~some.module.Kernel`, such as 0.7 or
            "70%".
        share: See ``width``.
        sizes: IBP's sizes.
        names: "a" or "b". As published.
        **options: The rest.

    Returns:
        names: Nothing of the arguments.
    """


@pytest.mark.parametrize(
    "name, types, sentence",
    [
        ("images", (), "what it is done to: (B, C)"),
        ("width", ("int",), 'width of the kernel, see Kernel, such as 0.7 or "70%"'),
        ("share", ("float",), 'share of the kernel, see Kernel, such as 0.7 or "70%"'),
        ("sizes", ("Sequence[int]",), "IBP's sizes"),
        ("seed", ("int", "None"), ""),
        ("names", ("str", "None"), '"a" or "b"'),
        ("nothing", (), ""),
    ],
)
def test_types_and_sentences(name, types, sentence):
    argument = documented_arguments(function)[name]
    assert (argument.types, argument.sentence) == (types, sentence)


def test_collected_arguments_are_none():
    assert list(documented_arguments(function))[-1] == "nothing"


def test_no_docstring_says_nothing():
    assert argument_sentences("") == {} == argument_sentences("One line only.")


@pytest.mark.parametrize("kind", [TrainConfig, Schedule, Projection, LossTerm])
def test_every_setting_is_explained(kind):
    assert all(argument.sentence for argument in documented_arguments(kind).values())
