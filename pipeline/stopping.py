"""Being asked to stop: SIGTERM and SIGUSR1, which schedulers send before they kill.

A signal raises `Stopped` where the main thread stands, as Ctrl-C raises KeyboardInterrupt; what is committed is safe at any
instant. Work that has an end of its own (a training loop, which saves first and agrees with its other ranks) runs within
`deferred` and asks `asked`.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)
BURST_SECONDS: Final = 1.0
"""Signals that follow each other closer than this are one: a second `Stopped` would only disturb what the first ends."""
_KNOCK_SECONDS: Final = 0.05


class Stopped(KeyboardInterrupt):
    """A signal asked for an end. No Exception, so that nobody takes it for a failure of what it interrupts."""


@dataclass
class _State:
    signal: signal.Signals | None = None
    deferrals: int = 0
    raised: float = float("-inf")


_state = _State()


def listen() -> None:
    """Heed the signals from now on, in the main thread; one that is ignored (as by nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    _state.signal, _state.deferrals, _state.raised = None, 0, float("-inf")
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


def asked() -> signal.Signals | None:
    """The first signal that came; None while nobody asked for an end."""
    return _state.signal


def raised() -> bool:
    """Whether `Stopped` was raised; an error that surfaces afterwards is how some library passed it on."""
    return _state.raised > float("-inf")


def heed() -> None:
    """Raise Stopped where an end was asked for, unless that is deferred."""
    if _state.signal is not None and not _state.deferrals:
        _state.raised = time.monotonic()
        raise Stopped(_state.signal.name)


@contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal raises nothing; one that came is heeded at the end, unless that is an error."""
    _state.deferrals += 1
    try:
        yield
    finally:
        _state.deferrals -= 1
    heed()


def hold() -> None:
    """Raise nothing from now on: the command is ending."""
    _state.deferrals += 1


def _receive(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGALRM and _state.signal is None:
        _state.signal = signal.Signals(number)
    if _state.deferrals or time.monotonic() - _state.raised < BURST_SECONDS:
        return
    if _importing(frame):  # a library half imported may end the process in ways of its own: knock again soon
        signal.signal(signal.SIGALRM, _receive)
        signal.setitimer(signal.ITIMER_REAL, _KNOCK_SECONDS)
        return
    heed()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
