"""Texts of others as a terminal or a page may show them: what would steer either is written out instead."""

import re
from typing import Final

# all controls but tab and newline, marks that turn the direction of writing, separators of lines, halves of surrogates
_STEERING: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with every character that steers what shows it as its escape: `\x1b`, `\u202e`. Line breaks stay."""
    return _STEERING.sub(_escape, text)


def printable_json(document: str) -> str:
    """The same of a JSON document, which stays one with the same content."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
