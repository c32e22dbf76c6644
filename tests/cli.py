"""Run the command line as a user does: a process of its own, the result from stdout."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "error"}


def arguments(*words: object) -> list[str]:
    return [sys.executable, "-m", "sherl_cache.pipeline", *map(str, words)]


def run(*words: object, code: int = 0, cwd: Path | None = None, stdin: str = "", **environment: str) -> Any:
    """JSON result of a command that must end with `code`; for another code than 0, what it wrote on stderr."""
    words = (*words, "--json")
    done = subprocess.run(
        arguments(*words), cwd=cwd, input=stdin, text=True, capture_output=True, env={**ENVIRONMENT, **environment}
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def start(*words: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """A command in the background, its stderr kept."""
    return subprocess.Popen(
        arguments(*words, "--json"), cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
