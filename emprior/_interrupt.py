r"""Stopping between two iterations, when someone asks for it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    r"""Keeps the first SIGINT or SIGTERM for later, while the `with` block lasts.

    A second signal acts as usual. Only the main thread can do this; elsewhere nothing is changed.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0
        self.usual: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self.usual = {number: signal.signal(number, self.keep) for number in self.SIGNALS}
        return self

    def keep(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.restore()

    def restore(self) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)
        self.usual = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
