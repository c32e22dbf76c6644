"""A command on a terminal of its own, and what it leaves on the screen."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

from cli import ENVIRONMENT, arguments

ROWS, COLUMNS = 40, 120


class Screen:
    """Lines as a terminal of endless height shows them, by the codes that progress bars use; any other code is an error."""

    def __init__(self) -> None:
        self.lines, self.row, self.column, self.cursor_shown = [""], 0, 0, True

    def feed(self, text: str) -> None:
        for code, parameters, final, character in re.findall(r"(\x1b\[([?\d;]*)([A-Za-z]))|([\s\S])", text):
            if code:
                self._code(parameters, final)
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            else:
                assert character.isprintable(), repr(character)
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
                self.column += 1

    def _code(self, parameters: str, final: str) -> None:
        if final == "A":
            self.row = max(self.row - int(parameters or 1), 0)
        elif final == "K":
            assert parameters == "2", parameters
            self.lines[self.row] = ""
        elif final in "hl":
            assert parameters == "?25", parameters
            self.cursor_shown = final == "h"
        else:
            assert final == "m", (parameters, final)

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


def on_a_terminal(
    *words: object, cwd: Path, press: str = "", once: Callable[[str], bool] = lambda said: False, seconds: float = 240
) -> tuple[int, Screen, str]:
    """Exit code, screen and all that was written of a command; `press` is typed once `once` holds of what was written."""
    child, terminal = pty.fork()
    if child == 0:  # the terminal is this process's own, and what is typed there reaches it as signals
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update({**ENVIRONMENT, "TERM": "xterm-256color"})
        command = arguments(*words)
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    said, pressed, until = b"", not press, time.monotonic() + seconds
    while time.monotonic() < until:
        ready, _, _ = select.select([terminal], [], [], 0.05)
        try:
            found = os.read(terminal, 65536) if ready else None
        except OSError:  # nobody holds the other end any more
            break
        if found == b"":
            break
        said += found or b""
        if not pressed and once(said.decode("utf-8", "replace")):
            os.write(terminal, press.encode())
            pressed = True
    else:
        os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    screen = Screen()
    screen.feed(said.decode("utf-8"))
    return os.waitstatus_to_exitcode(status), screen, said.decode("utf-8")
