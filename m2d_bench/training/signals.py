"""Signals that stop a training: the parent process saves and ends, its workers do not hear them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopSignal:
    """Context in which SIGINT, SIGTERM and SIGHUP are noted, so that a training stops after the step under way.

    A second Ctrl-C ends at once, unless it comes within a second of the first: `timeout` and torchrun send a signal to
    a process and to its group.
    """

    def __init__(self) -> None:
        self.received_at: float | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def received(self) -> bool:
        """Whether a signal came."""
        return self.received_at is not None

    def __enter__(self) -> StopSignal:
        for number in STOP_SIGNALS:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received_at is None:
            self.received_at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.received_at > 1:
            raise KeyboardInterrupt


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Blocks the stop signals for processes started inside, for good; this process gets them afterwards.

    A signal to the process group would end data workers before the parent has saved. They end with their parent.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
