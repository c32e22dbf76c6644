"""A process that has imported what every command imports, and forks for each of them.

A page is a few commands, and each of them spends seconds on importing torch and transformers. Here they are imported once; a
command is then the package's own entry point in a fork, with the arguments, folder, environment and files of the caller.

`python warm_commands.py SOCKET` serves; `sherl-cache` in the folder that `Warm` makes calls it.
"""

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CALLER = """\
#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    request = json.dumps({{"words": [{name!r}, *sys.argv[1:]], "folder": os.getcwd(), "environment": dict(os.environ)}})
    socket.send_fds(connection, [request.encode()], [0, 1, 2])
    connection.shutdown(socket.SHUT_WR)
    code = connection.recv(16)
sys.exit(int(code) if code else 1)
"""
ENTRIES = {"sherl-cache": ("sherl_cache.pipeline.cli", "entry"), "run-page": ("run_page", "entry")}
"""What can be called, and the function that it runs."""


class Warm:
    """The server, and a folder for PATH with what can be called."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        address = folder / "warm"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen([sys.executable, __file__, str(address)], env=environment)
        while not address.exists():
            assert self._server.poll() is None, "the server of warm imports ended"
            time.sleep(0.02)
        for name in ENTRIES:
            command = self.bin / name
            command.write_text(CALLER.format(python=sys.executable, address=str(address), name=name))
            command.chmod(0o755)

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


def serve(address: str) -> None:
    """Fork for every caller, until the tests end. Returns in the fork, which is to do what `sys.argv` says."""
    tests = os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address + ".new")
        listener.listen(16)
        os.rename(address + ".new", address)  # seen once it listens
        listener.settimeout(5)
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if os.getppid() != tests:  # they were killed
                    os._exit(0)
                continue
            if os.fork() == 0:
                break
            connection.close()
    # this fork waits for the one that does it, so that the interpreter of that one ends as any other
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    received: bytes = b""
    files: list[int] = []
    while True:
        part, found, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        files += found
        received += part
        if not part:
            break
    worker = os.fork()
    if worker:
        for number in (0, 1, 2, *files):
            os.close(number)
        _, status = os.waitpid(worker, 0)
        connection.send(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
        os._exit(0)
    connection.close()
    request: dict[str, Any] = json.loads(received)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    found_first = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[:0] = found_first  # as a fresh interpreter has them
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.argv = request["words"]
    # a fresh interpreter would look there first
    sys.path[:0] = [
        path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path
    ]


def import_everything() -> None:
    """What the commands import, none of which starts a thread."""
    import sherl_cache.pipeline as pipeline
    import sherl_cache.stages as stages
    import sherl_cache.storage as storage

    for package in (storage, stages, pipeline):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not {"trackers", "cluster", "__main__", "signals"} & set(module.name.split(".")):
                importlib.import_module(module.name)
    for name in ("datasets", "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert"):
        importlib.import_module(name)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    import_everything()
    gc.collect()
    gc.freeze()  # or each fork would copy all of this memory, to look through it for garbage at its end
    serve(sys.argv[1])
    home, function = ENTRIES[sys.argv[0]]
    getattr(importlib.import_module(home), function)()
