"""Every error a user can meet, as one tree; each class carries the exit code of the command that meets it.

    SherlCacheError               1   something of ours went wrong
    +-- UsageError                2   a command was called wrongly, or a place cannot be used
    |   +-- AccessDenied          2   the system refuses to read or write there
    +-- InvalidInput              3   a recipe, a model or data cannot be used as they are
    |   +-- RecipeError           3   a recipe's key or value
    |   +-- DataError             3   a data set, a file, a column, a label
    |   +-- ModelError            3   a model that cannot be loaded or that has no table
    |   +-- NonFinite             3   values that the chosen encoding cannot hold
    |   +-- BudgetTooSmall        3   a memory budget that cannot hold what it must
    +-- StoreNotUsable            4   a store that is not there, not finished or made from something else
    |   +-- StoreMissing          4   no store at that place
    |   +-- StoreIncomplete       4   units are missing
    |   +-- StoreStale            4   made from another model, data, tap set or text format
    +-- StoreCorrupt              5   bytes that are not what was committed
    +-- OutOfSpace                6   the disk, or a quota, is full
    +-- OutOfMemory               7   an allocator gave up
    +-- Interrupted              75   stopped by a signal; the same command goes on
    |   +-- RankLost             75   another process of the same training is gone, or the code with which it ended
    +-- RemoteUnavailable        75   object storage does not answer; the same command goes on

Ctrl-C exits with 130. Messages name the thing, what is wrong and what would be right.
"""


class SherlCacheError(Exception):
    """Base of every error below; catch this one."""

    exit_code = 1


class UsageError(SherlCacheError):
    """A command was called wrongly, or a place it was given cannot be used."""

    exit_code = 2


class AccessDenied(UsageError):
    """The system refuses to read or write at a place that was given."""


class InvalidInput(SherlCacheError):
    """A recipe, a model or data cannot be used as they are."""

    exit_code = 3


class RecipeError(InvalidInput):
    """A recipe names an unknown key, or a value that cannot be."""


class DataError(InvalidInput):
    """A data set, a file, a column or a label is not what the task needs."""


class ModelError(InvalidInput):
    """A model cannot be loaded, or no backbone table describes it."""


class NonFinite(InvalidInput):
    """Values are NaN, infinite or too large for the chosen encoding."""


class BudgetTooSmall(InvalidInput):
    """A memory budget cannot hold what it must; the message names the bytes needed."""


class StoreNotUsable(SherlCacheError):
    """A store that is not there, not finished, or made from something else."""

    exit_code = 4


class StoreMissing(StoreNotUsable):
    """There is no store at that place."""


class StoreIncomplete(StoreNotUsable):
    """Units of the store are missing; running extract again writes them."""


class StoreStale(StoreNotUsable):
    """The store was made from another model, data, tap set or text format."""


class StoreCorrupt(SherlCacheError):
    """Bytes of the store are not what was committed."""

    exit_code = 5


class OutOfSpace(SherlCacheError):
    """The disk or a quota is full."""

    exit_code = 6


class OutOfMemory(SherlCacheError):
    """An allocator gave up."""

    exit_code = 7


class Interrupted(SherlCacheError):
    """Stopped by a signal; running the same command again goes on."""

    exit_code = 75


class RankLost(Interrupted):
    """Another process of the same training is gone; `exit_code` is its own where it had the time to tell."""

    def __init__(self, message: str, exit_code: int = Interrupted.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RemoteUnavailable(SherlCacheError):
    """Object storage does not answer, also when asked again; running the same command later goes on."""

    exit_code = 75
