"""Texts without what is secret: values that the environment keeps, and what a URL holds beside its place."""

from __future__ import annotations

import os
import re
from typing import Final

_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_LEAST_SECRET: Final = 6
_USERINFO: Final = re.compile(r"(\w://?)[^\s'\"]*@")
_QUERY: Final = re.compile(r"(\w://[^\s?'\"]*)\?[^\s'\"]*=[^\s'\")]*")


def without_secrets(text: str) -> str:
    """The text with `***` for the values of secret variables of the environment, for user and password of a URL, and for its
    query, which may hold a signature.
    """
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _LEAST_SECRET:
            text = text.replace(value, "***")
    return _QUERY.sub(r"\1?***", _USERINFO.sub(r"\1***@", text))
