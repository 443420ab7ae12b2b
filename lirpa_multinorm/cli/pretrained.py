"""The command ``pretrained``."""

from __future__ import annotations

import argparse

from ..networks import card_table, card_text, pretrained_names
from ..networks.loading import pretrained_card
from .arguments import guarded, in_words_of_flags


def add_pretrained_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``pretrained``."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="print the card of this network (default: a table of all)",
    )


@guarded
def run_pretrained(args: argparse.Namespace) -> None:
    """Print the table of all pretrained networks, or the card of one."""
    if args.name is None:
        print(card_table([pretrained_card(name) for name in pretrained_names()]))
        print("\npercent of n test images; lirpa-multinorm pretrained NAME prints a card")
        return
    with in_words_of_flags(name="NAME"):
        card = pretrained_card(args.name)
    print(card_text(card))
