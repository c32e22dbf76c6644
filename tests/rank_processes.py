"""Processes as torchrun or srun starts them, forked from a server that has imported torch once: starting one costs little."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["sherl_cache.pipeline.training", "sherl_cache.pipeline.together", "sherl_cache.pipeline.preparing", "reviews_csv"]
)
END_SECONDS = 1500


@dataclass
class Ranks:
    """Started processes, by rank, and the files of what each says."""

    processes: list[Any]
    files: list[Path]

    def signal(self, number: int, *, but: int | None = None) -> None:
        for rank, process in enumerate(self.processes):
            if rank != but and process.exitcode is None:
                os.kill(process.pid, number)

    def codes(self) -> list[int]:
        """Exit codes, once all have ended."""
        until = time.monotonic() + END_SECONDS
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0))
            if process.exitcode is None:
                for each in self.processes:
                    each.kill()
                raise AssertionError(f"a rank did not end\n{self.said()}")
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        return "\n".join(path.read_text() for path in self.files if path.exists())

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Whether `ready` came before one of them ended."""
        while all(process.exitcode is None for process in self.processes):
            if ready():
                return True
            time.sleep(0.01)
        return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start_ranks(count: int, folder: Path, function: Callable[..., None], *arguments: object) -> Ranks:
    """`function(*arguments)` in `count` processes, which know of each other where they are several."""
    folder.mkdir(parents=True, exist_ok=True)
    port, processes, files = free_port(), [], []
    for rank in range(count):
        several = {
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        files.append(folder / f"said-{len(list(folder.glob('said-*')))}-{rank}.txt")
        process = CONTEXT.Process(
            target=_begin, args=(several if count > 1 else {}, str(files[-1]), function, arguments)
        )
        process.start()
        processes.append(process)
    return Ranks(processes, files)


def start_command(count: int, folder: Path, *words: object) -> Ranks:
    """The command line in `count` processes."""
    return start_ranks(count, folder, command, [str(word) for word in words])


def command(words: Sequence[str]) -> None:
    from sherl_cache.pipeline.cli import entry

    sys.argv = ["sherl-cache", *words]
    entry()


def _begin(environment: dict[str, str], said: str, function: Callable[..., None], arguments: Sequence[object]) -> None:
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("error")
    function(*arguments)
