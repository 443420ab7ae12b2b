"""Networks that come with the package: files, their SHA-256, cards, and how they are loaded."""

from .card import card_of, card_table, card_text
from .files import NETWORK_FILES, pretrained_names
from .loading import Pretrained, pretrained

__all__ = [
    "NETWORK_FILES",
    "Pretrained",
    "card_of",
    "card_table",
    "card_text",
    "pretrained",
    "pretrained_names",
]
