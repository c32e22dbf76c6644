"""The eye that ranks keep on each other: who is gone is named, and nobody waits for it for ever."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from rank_processes import free_port, start_ranks

from sherl_cache.pipeline import watch
from sherl_cache.pipeline.launch import Launch
from sherl_cache.pipeline.watch import Watch, beat_key, introduction
from sherl_cache.storage.errors import RankLost

ELSEWHERE = {"process": "elsewhere-12-ab", "host": "far"}


class Meeting:
    """A store with the beats of two ranks, of which this process is rank 1 and tells what rank 0 does."""

    def __init__(self) -> None:
        port, timeout = free_port(), timedelta(seconds=5)
        self.server: Any = dist.TCPStore("127.0.0.1", port, None, True, timeout, wait_for_workers=False)
        for rank in (0, 1):
            self.server.set(beat_key(rank), "0")
        self.watch = Watch(
            Launch(1, 2, 1, "127.0.0.1", port),
            lambda: dist.TCPStore("127.0.0.1", port, None, False, timeout, wait_for_workers=False),
        )
        self.watch.start({0: ELSEWHERE, 1: introduction()})

    def ends(self, code: int, said: str) -> None:
        self.server.set(beat_key(0), json.dumps({"code": code, "said": said}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(watch, "GONE_SECONDS", 0.5)


@pytest.mark.usefixtures("quick")
def test_a_beat_that_stands_still_is_named_and_one_that_goes_on_is_not() -> None:
    meeting = Meeting()
    for number in range(1, 60):
        meeting.server.set(beat_key(0), str(number))
        time.sleep(0.02)
    assert not meeting.watch._found.is_set()
    lost = meeting.watch.reason(RuntimeError("Connection closed by peer"))
    assert isinstance(lost, RankLost)
    assert str(lost) == "rank 0 of 2 (process 12 on far) has not been heard of for 0 s"
    assert lost.exit_code == 75
    meeting.watch.leave(meeting.server, lost.exit_code, str(lost))
    assert json.loads(meeting.server.get(beat_key(1)))["code"] == 75


@pytest.mark.usefixtures("quick")
def test_a_rank_that_ends_by_an_error_tells_the_others_and_they_take_its_code() -> None:
    meeting = Meeting()
    meeting.ends(5, "a chunk is damaged")
    lost = meeting.watch.reason(RuntimeError("x"))
    assert isinstance(lost, RankLost)
    assert (str(lost), lost.exit_code) == ("rank 0 of 2 (process 12 on far) ended: a chunk is damaged", 5)
    meeting.watch.leave(meeting.server, 5, str(lost))


@pytest.mark.usefixtures("quick")
def test_a_rank_that_came_to_its_end_is_not_missed() -> None:
    meeting = Meeting()
    meeting.ends(0, "")
    assert not meeting.watch._found.wait(1.5)
    meeting.watch.leave(meeting.server, 0, "")


def wait_for_ever(folder: str) -> None:
    """A main thread that hears of nothing, as in a message that nobody answers."""
    watch.BEAT_SECONDS, watch.GONE_SECONDS, watch.GRACE_SECONDS = 0.05, 0.3, 0.2  # type: ignore[misc]
    meeting = Meeting()
    (Path(folder) / "waits").touch()
    time.sleep(600)
    meeting.ends(0, "")


def test_a_process_that_waits_for_a_rank_that_is_gone_is_ended(tmp_path: Path) -> None:
    started = start_ranks(1, tmp_path, wait_for_ever, str(tmp_path))
    assert started.codes() == [75]
    assert (tmp_path / "waits").exists()
    assert "rank 1 of 2: rank 0 of 2 (process 12 on far) has not been heard of" in started.said()
