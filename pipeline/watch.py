"""Ranks watch each other, so that none waits for one that is gone: a beat a second through the store where they met.

A rank whose beat stands still, or whose process has certainly ended on this machine, is gone; one that ends says how. Who
finds that out while the main thread is in a message that nobody will answer ends the process: as after SIGKILL, what was
committed is whole.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..storage.errors import RankLost
from ..storage.processes import is_gone, process_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch._C._distributed_c10d import Store

    from .launch import Launch

BEAT_SECONDS: Final = 1.0
GONE_SECONDS: Final = 15.0
"""A beat that stands still for so long is that of a process that is gone, or as good as gone."""
_LOOK_SECONDS: Final = 6.0
"""One look counts for at most so much: a job that was suspended and goes on has not lost its ranks."""
GRACE_SECONDS: Final = 4.0
"""How long the main thread has to notice by itself that a rank is gone."""
SAVE_SECONDS: Final = 8.0
"""How much longer it has, once it did, to save what was learnt."""


@dataclass
class _Peer:
    rank: int
    name: str
    """Its process, see storage/processes.py."""
    host: str
    beat: bytes = b""
    silent: float = 0.0
    """Seconds for which its beat has stood still, as far as we looked."""
    ended: bool = False
    """Whether it came to its end as all of them do."""


class Watch:
    """The beat of this rank and the eye on the others, in a thread of its own."""

    def __init__(self, launch: Launch, store: Callable[[], Store]) -> None:
        """store: makes a client of the place where all met, for the thread alone."""
        self._launch, self._connect = launch, store
        self._peers: list[_Peer] = []
        self._lost: RankLost | None = None
        self._found, self._noticed, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="sherl-cache watch", daemon=True)

    def start(self, members: dict[int, Any]) -> None:
        """Begin, once all are there: what `introduction` gave, by rank."""
        others = ((rank, said) for rank, said in members.items() if rank != self._launch.rank)
        self._peers = [_Peer(rank, said["process"], said["host"]) for rank, said in others]
        self._thread.start()

    def reason(self, error: Exception) -> Exception:
        """Why a message to all failed: which rank is gone, as soon as that is known."""
        self._noticed.set()
        self._found.wait(GONE_SECONDS + _LOOK_SECONDS)
        return self._lost or RankLost(f"the ranks lost touch with each other ({str(error).splitlines()[0]})")

    def leave(self, store: Store, code: int, said: str) -> None:
        """Say how this rank ended, in the main thread. One that keeps the store waits a moment for the others to read it."""
        self._ended.set()
        self._thread.join(2 * BEAT_SECONDS)
        try:
            store.set(beat_key(self._launch.rank), json.dumps({"code": code, "said": said}))
            if self._launch.rank == 0 and not self._launch.hosted:
                until = time.monotonic() + GRACE_SECONDS
                while time.monotonic() < until and not all(_ending(beat) for beat in self._beats(store)):
                    time.sleep(0.05)
        except RuntimeError:  # nobody is there any more to be told
            pass

    def _run(self) -> None:
        store, number, deaf, looked = None, 0, 0.0, time.monotonic()
        while not self._ended.wait(BEAT_SECONDS if number else 0):
            number += 1
            passed = min(time.monotonic() - looked, _LOOK_SECONDS)
            looked = time.monotonic()
            try:
                store = store or self._connect()
                store.set(beat_key(self._launch.rank), str(number))
                lost = self._look(self._beats(store), passed)
                deaf = 0.0
            except RuntimeError:
                store, deaf = None, deaf + passed
                lost = self._gone_by_process() or (self._without_store() if deaf > GONE_SECONDS else None)
            if lost is not None and not self._ended.is_set():
                self._end_by(lost)
                return

    def _end_by(self, lost: RankLost) -> None:
        """Let the main thread end by itself, or end the process."""
        self._lost = lost
        self._found.set()
        if self._ended.wait(GRACE_SECONDS) or (self._noticed.is_set() and self._ended.wait(SAVE_SECONDS)):
            return
        print(f"{self._launch}: {lost}. What was committed is kept.", file=sys.stderr, flush=True)
        os._exit(lost.exit_code)

    def _beats(self, store: Store) -> list[bytes]:
        return list(store.multi_get([beat_key(peer.rank) for peer in self._peers]))

    def _look(self, beats: list[bytes], passed: float) -> RankLost | None:
        for peer, beat in zip(self._peers, beats, strict=True):
            ending = _ending(beat)
            if ending is not None and ending["code"] == 0:
                peer.ended = True
            elif ending is not None:
                return RankLost(f"{self._named(peer)} ended: {ending['said']}", ending["code"])
            peer.silent = peer.silent + passed if beat == peer.beat and not peer.ended else 0.0
            peer.beat = beat
            if peer.silent > GONE_SECONDS:
                return RankLost(f"{self._named(peer)} has not been heard of for {GONE_SECONDS:.0f} s")
        return self._gone_by_process()

    def _gone_by_process(self) -> RankLost | None:
        gone = [peer for peer in self._peers if not peer.ended and is_gone(peer.name)]
        verb = "is" if len(gone) == 1 else "are"
        return RankLost(f"{' and '.join(map(self._named, gone))} {verb} gone") if gone else None

    def _without_store(self) -> RankLost | None:
        keeper = next((peer for peer in self._peers if peer.rank == 0 and not self._launch.hosted), None)
        if keeper is not None and keeper.ended:
            return None
        return RankLost(f"{self._named(keeper)} does not answer" if keeper else "the launcher does not answer")

    def _named(self, peer: _Peer) -> str:
        return f"rank {peer.rank} of {self._launch.count} (process {peer.name.split('-')[1]} on {peer.host})"


def introduction() -> dict[str, str]:
    """Who this process is, for the others."""
    import socket

    return {"process": process_name(), "host": socket.gethostname()}


def beat_key(rank: int) -> str:
    """Where in the store a rank's beat is; it must be there before the others look."""
    return f"beat/{rank}"


def _ending(beat: bytes) -> dict[str, Any] | None:
    """How a rank ended, where that is what it says."""
    found: dict[str, Any] | None = json.loads(beat) if beat.startswith(b"{") else None
    return found
