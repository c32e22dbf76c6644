"""What goes wrong while a pretrained model is loaded, said in our own words."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..storage.errors import ModelError


@contextmanager
def explained(name: str, revision: str | None, what: str) -> Iterator[None]:
    """Turn what the libraries raise into a ModelError that says what would be right."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_explain(name, revision, what, error)) from error


def _fetch_command(name: str, revision: str | None) -> str:
    return shlex.join(["sherl-cache", "fetch", "--model", name, *(["--revision", revision] if revision else [])])


def _explain(name: str, revision: str | None, what: str, error: Exception) -> str:
    causes = list(_chain(error))
    at = f" at revision {revision}" if revision else ""
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"the model {name} is gated; ask for access on the hub and log in with `hf auth login`"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"the model {name} has no revision {revision}; give a branch, a tag or a commit of it"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return (
            f"no model named {name} on the hub, nor a folder of that name; check the spelling, or "
            "log in if it is private"
        )
    if any(isinstance(cause, (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError)) for cause in causes):
        return (
            f"the {what} of the model {name}{at} is not on this machine and the hub cannot be reached "
            "(offline, or HF_HUB_OFFLINE is set); bring it where there is a network, with the same HF_HOME: "
            f"{_fetch_command(name, revision)}; or give a folder that holds the model"
        )
    if what == "weights" and "safetensors" in str(error):
        return (
            f"the model {name}{at} has no safetensors weights, and other formats can run code when "
            "read; convert it where you trust "
            "it: AutoModel.from_pretrained(NAME, use_safetensors=False).save_pretrained(FOLDER), "
            "then give FOLDER"
        )
    if "trust_remote_code" in str(error):
        return (
            f"the model {name}{at} needs code from its own repository, which is never run; use a "
            "model that transformers knows"
        )
    return f"the {what} of the model {name}{at} cannot be loaded: {one_line(error)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def one_line(error: BaseException) -> str:
    """Kind and words of an error, at most 300 characters of them."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
