"""Places and names as a page may show them."""

from ...storage.place import redacted


def shown_place(name: str) -> str:
    """A place or name without what may be a secret."""
    return redacted(name) if "://" in name else name
