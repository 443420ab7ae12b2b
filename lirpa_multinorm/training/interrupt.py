"""Postpone Ctrl-C to the end of a step."""

from __future__ import annotations

import signal
import threading


class Interruption:
    """Lets the first Ctrl-C in the block ask for a stop instead of raising KeyboardInterrupt.

    A second one raises, and so does the end of the block if nobody has looked at ``asked``. Of
    SIGINT and SIGTERM those are taken whose handler is Python's own, which raises
    KeyboardInterrupt; other handlers stay, and handlers can be set in the main thread only.

    Example:
        >>> with Interruption() as interruption:
        ...     interruption.asked
        False
    """

    def __init__(self) -> None:
        self.asked = False
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.default_int_handler:
                    signal.signal(number, self._ask)
                    self._taken.append(number)
        return self

    def _ask(self, *_) -> None:
        self.asked = True
        self._give_back()

    def _give_back(self) -> None:
        while self._taken:
            signal.signal(self._taken.pop(), signal.default_int_handler)

    def __exit__(self, kind, *_) -> None:
        self._give_back()
        if self.asked and kind is None:
            raise KeyboardInterrupt
