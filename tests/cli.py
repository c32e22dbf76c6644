"""Run the command line: in this process where that is enough, in one of its own where a user's shell matters."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from sherl_cache.pipeline.cli import main

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "error"}


def call(*words: object, code: int = 0) -> Any:
    """Result of a command run in this process, parsed from its JSON; for a `code` other than 0, what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main([*map(str, words), "--json"])
    assert found == code, f"exit code {found}\n{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return json.loads(out.getvalue()) if code == 0 else err.getvalue()


def arguments(*words: object) -> list[str]:
    return [sys.executable, "-m", "sherl_cache.pipeline", *map(str, words)]


def run(*words: object, code: int = 0, cwd: Path | None = None, stdin: str = "", **environment: str) -> Any:
    """As `call`, in a fresh process."""
    done = subprocess.run(
        arguments(*words, "--json"),
        cwd=cwd,
        input=stdin,
        text=True,
        capture_output=True,
        env={**ENVIRONMENT, **environment},
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def start(*words: object, cwd: Path | None = None, warnings: str = "error") -> subprocess.Popen[str]:
    """A command in the background, its stderr kept."""
    return subprocess.Popen(
        arguments(*words, "--json"),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "PYTHONWARNINGS": warnings},
        # a test run in the background of a shell ignores Ctrl-C, and its children would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
