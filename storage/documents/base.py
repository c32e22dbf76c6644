"""What all documents of a store have in common: strict fields, canonical bytes, and how they are parsed."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from .. import keys
from ..errors import StoreCorrupt, StoreNotUsable

FORMAT: Final = 1
KNOWN_FEATURES: Final[frozenset[str]] = frozenset({"bitround", "int8", "widths", "zstd"})
DOCUMENT_BYTES: Final = 64 << 20
"""No document of a store is larger; a larger file is refused unread."""

_SHOWN_CHARACTERS: Final = 200

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Positive = Annotated[int, Field(ge=1, lt=1 << 62)]
_Bytes = bytes  # `bytes` names a field in the classes below


class Document(BaseModel):
    """Frozen, no unknown keys, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """The bytes of the file: canonical JSON."""
        return keys.canonical(self.model_dump(mode="json"))

    @property
    def file_sha256(self) -> str:
        """Digest of the file."""
        return keys.digest_bytes(self.to_bytes())


class FileRecord(Document):
    """A file's size and content."""

    bytes: Count
    sha256: Digest

    def file_differs(self, data: _Bytes) -> bool:
        """Whether `data` is not the content that was recorded."""
        return len(data) != self.bytes or keys.digest_bytes(data) != self.sha256


AnyDocument = TypeVar("AnyDocument", bound=Document)


def parse(kind: type[AnyDocument], data: bytes, path: str) -> AnyDocument:
    """A document from its bytes.

    Raises StoreCorrupt where they are not such a document, StoreNotUsable where a newer version of this
    package wrote it.
    """
    try:
        document = kind.model_validate_json(data)
    except ValidationError as error:
        _refuse_newer(data, path)
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        told = _plain(f"{place}: {first['msg']}")
        raise StoreCorrupt(f"{path}: not a valid {kind.__name__.lower()}: {told}") from None
    _refuse_unknown(getattr(document, "features", ()), path)
    return document


def _refuse_newer(data: bytes, path: str) -> None:
    """Of bytes that are no valid document, say it where they are no JSON, or of a newer version."""
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise StoreCorrupt(f"{path}: not valid JSON") from None
    if not isinstance(tree, dict):
        raise StoreCorrupt(f"{path}: not a JSON object")
    number = tree.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise StoreNotUsable(f"{path}: store format {number}, this version reads {FORMAT}: update sherl-cache")
    features = tree.get("features")
    _refuse_unknown([str(name) for name in features] if isinstance(features, list) else [], path)


def _refuse_unknown(features: Iterable[str], path: str) -> None:
    unknown = [name for name in features if name not in KNOWN_FEATURES]
    if unknown:
        raise StoreNotUsable(f"{path}: needs {_plain(', '.join(unknown))}, unknown to this version: update sherl-cache")


def _plain(text: str) -> str:
    """Text out of a document as a message may show it: short, and of characters that every terminal has."""
    shown = text.encode("ascii", "backslashreplace").decode("ascii")
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
