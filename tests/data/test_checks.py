"""What images, labels and radii may be when a run starts: the table of docs/data.md, row by row."""

import dataclasses
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, PerturbationLpBox
from lirpa_multinorm.data import ImageData, checked_data
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training.preflight import check_run
from tests.toy import CONFIG, SPEC, data

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
REFUSED, CONVERTED, WARNED = "refused", "converted", "warned"
IMAGES = data()
ONE_HOT = torch.eye(3)[IMAGES.y_train]


def both(**changes):
    """Change images ("x") or labels ("y") of both parts."""
    return {
        f"{name}_{part}": change(getattr(IMAGES, f"{name}_{part}"))
        for name, change in changes.items()
        for part in ("train", "test")
    }


def at(values, index, value):
    values = values.clone()
    values[index] = value
    return values


# What it is -> (changes of good data, outcome, words of the message)
DATA = {
    "channels last (N, H, W, C)": (
        lambda: both(x=lambda x: torch.rand(len(x), 8, 8, 3)),
        REFUSED,
        "Pass x.permute(0, 3, 1, 2)",
    ),
    "no channel axis (N, H, W)": (
        lambda: both(x=lambda x: x[:, 0]),
        REFUSED,
        "grey images need a channel axis",
    ),
    "no image": (
        lambda: {"x_train": IMAGES.x_train[:0]},
        REFUSED,
        "is not (N, C, H, W) with N >= 1",
    ),
    "floats from 0 to 255": (
        lambda: both(x=lambda x: (255 * x).round()),
        REFUSED,
        "divide by 255: x_train / 255",
    ),
    "floats from 0 to 16": (
        lambda: both(x=lambda x: 16 * x / x.max()),
        REFUSED,
        "Divide by the largest value: x_train / 16",
    ),
    "normalised floats": (lambda: both(x=lambda x: x - 0.5), REFUSED, "Undo a normalisation"),
    "uint8 from 0 to 16": (lambda: both(x=lambda x: (16 * x).byte()), REFUSED, "largest value is"),
    "uint8 of 0 and 1": (lambda: both(x=lambda x: (x > 0.5).byte()), REFUSED, "x.float() / 1"),
    "images of another integer type, or bool": (
        lambda: both(x=lambda x: (255 * x).long()),
        REFUSED,
        "neither uint8 nor floating point",
    ),
    "NaN or infinite values": (
        lambda: {"x_train": at(IMAGES.x_train, 5, float("nan"))},
        REFUSED,
        "in 1 of 40 images, the first at index 5",
    ),
    "float16, bfloat16 or float64 images": (
        lambda: both(x=lambda x: x.half()),
        CONVERTED,
        "x_train from float16 to float32",
    ),
    "floats, a few of which leave [0, 1]": (
        lambda: {"x_train": at(IMAGES.x_train, (6, 0, 0, 0), 1.7)},
        REFUSED,
        "in 1 of 40 images, the first at index 6",
    ),
    "floats that rounding put outside [0, 1]": (
        lambda: {"x_train": at(IMAGES.x_train, (6, 0, 0, 0), 1 + 3e-7)},
        CONVERTED,
        "x_train to [0, 1]",
    ),
    "floats of at most 16/255": (
        lambda: both(x=lambda x: x / 255),
        WARNED,
        "were they divided by 255 twice?",
    ),
    "sparse tensors": (lambda: both(x=lambda x: x.to_sparse()), REFUSED, "x_train.to_dense()"),
    "numpy arrays": (
        lambda: both(y=lambda y: y.numpy()),
        CONVERTED,
        "y_train from a numpy array to a tensor",
    ),
    "labels of another integer type": (
        lambda: both(y=lambda y: y.int()),
        CONVERTED,
        "y_train from int32 to int64",
    ),
    "labels (N, 1)": (
        lambda: both(y=lambda y: y[:, None]),
        CONVERTED,
        "y_train from shape (40, 1) to (40,)",
    ),
    "bool labels": (
        lambda: both(y=lambda y: y > 0),
        REFUSED,
        "dtype bool is not one integer per image",
    ),
    "float labels": (
        lambda: both(y=lambda y: y.float()),
        REFUSED,
        "dtype float32 is not one integer per image",
    ),
    "one-hot labels": (lambda: {"y_train": ONE_HOT}, REFUSED, "of one-hot rows: y_train.argmax(1)"),
    "negative labels, such as -100": (
        lambda: {"y_train": at(IMAGES.y_train, 4, -100)},
        REFUSED,
        "label -100 is negative (1 labels are, the first at index 4)",
    ),
    "labels from 1 to K": (
        lambda: both(y=lambda y: y + 1),
        REFUSED,
        "Number them from 0: y_train - 1",
    ),
    "labels above the classes": (
        lambda: {"y_test": at(IMAGES.y_test, 3, 7)},
        REFUSED,
        "the first at index 3",
    ),
    "another number of labels than images": (
        lambda: {"y_train": IMAGES.y_train[:9]},
        REFUSED,
        "9 labels for the 40 images",
    ),
    "fewer than two classes": (
        lambda: {"num_classes": 1, **both(y=lambda y: 0 * y)},
        REFUSED,
        "num_classes=1",
    ),
    "a class without a training image": (
        lambda: {"y_train": IMAGES.y_train % 2},
        WARNED,
        "no training image of class 2",
    ),
    "training images of one class": (
        lambda: {"y_train": 0 * IMAGES.y_train},
        WARNED,
        "all training images are of class 0",
    ),
}
RADII = {
    "l_inf radius of 1 or more": ([PerturbationLinf(8)], REFUSED, "8/255 is 0.03137"),
    "l_p radius of at least the diameter of [0, 1]^n": (
        [PerturbationL2Box(4.0)],
        REFUSED,
        "at most 4 apart",
    ),
    "a radius at which most images meet another class": (
        [PerturbationLinf(0.5)],
        WARNED,
        "of another class within 2 eps",
    ),
    "a clip that does not hold the images": (
        [PerturbationLpBox("inf", 0.1, clip=(0.5, 1.0))],
        REFUSED,
        "does not hold the images",
    ),
    "a radius per image": (
        [PerturbationLinf(torch.tensor([0.1, 0.2]))],
        REFUSED,
        "one radius per set",
    ),
}


def said(function):
    """What came of a call: an error, or a warning, or nothing; and the text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function()
        except InvalidArgumentError as error:
            return REFUSED, str(error)
    texts = [
        str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)
    ]
    return (
        CONVERTED if any("converted" in text for text in texts) else WARNED if texts else "taken"
    ), " ".join(texts)


@pytest.mark.parametrize("change, outcome, words", DATA.values(), ids=DATA)
def test_data_made_by_hand(change, outcome, words):
    result, text = said(lambda: checked_data(dataclasses.replace(IMAGES, **change())))
    assert result == outcome and words in text, text


@pytest.mark.parametrize("sets, outcome, words", RADII.values(), ids=RADII)
def test_radii_against_the_images(sets, outcome, words):
    result, text = said(
        lambda: check_run(SPEC, IMAGES, sets, dataclasses.replace(CONFIG, loss="ibp"))
    )
    assert result == outcome and words in text, text


def test_the_page_has_these_rows_and_no_other():
    cases = {**DATA, **RADII}
    rows = [f"| {name} | {outcome} | {words} |" for name, (_, outcome, words) in cases.items()]
    assert (
        re.findall(r"^\| .* \| (?:refused|converted|warned) \| .* \|$", PAGE, re.MULTILINE) == rows
    ), "\n".join(rows)


TAKEN = {
    "as it is": {},
    "bytes": both(x=lambda x: (255 * x).byte()),
    "dark bytes": both(x=lambda x: (20 * x).byte()),
    "feature maps": both(x=lambda x: torch.rand(len(x), 16, 4, 4)),
    "one row": both(x=lambda x: torch.rand(len(x), 20, 1, 1)),
    "not contiguous": both(x=lambda x: x.transpose(2, 3)),
}


@pytest.mark.parametrize("changes", TAKEN.values(), ids=TAKEN)
def test_good_data_pass_without_a_word_and_unchanged(changes):
    images = dataclasses.replace(IMAGES, **changes)
    result = []
    assert said(lambda: result.append(checked_data(images))) == ("taken", "")
    assert result[0].x_train is not None and torch.equal(result[0].x_train, images.x_train)


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, ">i4"], ids=str
)
def test_labels_of_every_integer_type(kind):
    result = checked_data(
        dataclasses.replace(IMAGES, **both(y=lambda y: y.numpy().astype(kind)[:, None]))
    )
    assert torch.equal(result.y_train, IMAGES.y_train) and torch.equal(result.y_test, IMAGES.y_test)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_images_of_every_floating_type(kind):
    result = checked_data(dataclasses.replace(IMAGES, **both(x=lambda x: x.to(kind))))
    assert result.x_train.dtype == torch.float32 and torch.allclose(
        result.x_train, IMAGES.x_train, atol=5e-3
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": [[0.5]]},
        {"y_train": [0, 1]},
        {"y_train": np.array(["a", "b"])},
        {"num_classes": True},
        {"num_classes": 3.0},
        {"std": (0.0,)},
        {"mean": (float("nan"),)},
        {"mean": (0.1, 0.2)},
        {"x_test": torch.zeros(12, 3, 4, 4)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_things_are_refused_by_name(changes):
    ((name, _),) = changes.items()
    with pytest.raises(InvalidArgumentError, match=f"^{name}"):
        checked_data(dataclasses.replace(IMAGES, **changes))


def test_sixty_thousand_images_take_less_than_two_seconds():
    import time

    x, y = torch.randint(0, 256, (60000, 1, 28, 28), dtype=torch.uint8), torch.arange(60000) % 10
    images = ImageData("mnist-like", 10, (0.0,), (1.0,), x, y, x[:10000], y[:10000])
    started = time.process_time()
    checked_data(images)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("part, other", [("x_train", "x_test"), ("x_test", "x_train")])
def test_one_good_part_does_not_hide_a_black_one(part, other):
    dark = dataclasses.replace(IMAGES, **{part: getattr(IMAGES, part) / 255})
    with pytest.warns(UserWarning, match=f"{part} is .* divided by 255 twice"):
        checked_data(dark)
    bits = dataclasses.replace(IMAGES, **{part: (getattr(IMAGES, part) > 0.5).byte()})
    for bright in (
        bits,
        dataclasses.replace(bits, **{other: (255 * getattr(IMAGES, other)).byte()}),
    ):
        with pytest.raises(
            InvalidArgumentError, match=f"^{part}: uint8 images whose largest value is 1"
        ):
            checked_data(bright)


@pytest.mark.parametrize(
    "changes",
    [{"mean": None}, {"std": ("a",)}, {"x_train": np.ma.masked_array(np.ones((4, 1, 4, 4)))}],
    ids=lambda changes: next(iter(changes)),
)
def test_constants_and_arrays_of_other_kinds(changes):
    with pytest.raises(InvalidArgumentError, match=f"^{next(iter(changes))}"):
        checked_data(dataclasses.replace(IMAGES, **changes))
