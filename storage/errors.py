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

Ctrl-C exits with 130. Messages name the thing, what is wrong and what would be right. The first paragraph of a class's
docstring is the cause, the second one the cure: docs/errors.md is made of them (pipeline/error_page.py).
"""


class SherlCacheError(Exception):
    """Something of ours could not be done, and no class below says it more closely; base of them all, so catch this one.

    Run the same command again; where it happens each time, run it with -v and report what it shows.
    """

    exit_code = 1


class UsageError(SherlCacheError):
    """A command was called wrongly, or a place it was given cannot be used.

    Put right what the message names; `sherl-cache COMMAND --help` lists every option of a command with an example.
    """

    exit_code = 2


class AccessDenied(UsageError):
    """The system refuses to read or write at a place that was given.

    Choose a place where you may read and write, or change its permissions; on object storage, see the credentials in the
    environment.
    """


class InvalidInput(SherlCacheError):
    """A recipe, a model or data cannot be used as they are.

    Change the setting that the message names; a loss that stops being finite wants a smaller learning rate.
    """

    exit_code = 3


class RecipeError(InvalidInput):
    """A recipe names an unknown key, or a value that cannot be.

    `sherl-cache recipe schema` lists every key and `sherl-cache methods NAME` the options of a method; `sherl-cache recipe
    show` prints what a recipe comes to.
    """


class DataError(InvalidInput):
    """A data set, a file, a column or a label is not what the task needs.

    Name the right split or column (--text-column, --label-column), or mend the row that the message names.
    """


class ModelError(InvalidInput):
    """A model cannot be loaded, or no backbone table describes it.

    Give a folder that `save_pretrained` wrote, or a name on the hub with the network on; docs/add-a-backbone.md shows how
    a family without a table gets one.
    """


class NonFinite(InvalidInput):
    """Values are NaN, infinite or too large for the chosen encoding.

    Choose `--encoding bfloat16` or float32 for values that are large; where the model itself makes NaN, compute with
    `--precision float32`, or look at its weights and at the examples that the message names.
    """


class BudgetTooSmall(InvalidInput):
    """A memory budget cannot hold what it must; the message names the bytes needed.

    Give data.read_budget those bytes, or set data.window to at most the one that the message names.
    """


class StoreNotUsable(SherlCacheError):
    """A store that this version cannot use: it is of a newer format, or does not say how it was made.

    Update sherl-cache, or give the options that the store was extracted with.
    """

    exit_code = 4


class StoreMissing(StoreNotUsable):
    """There is no store at that place.

    Check --store, or make the store: `sherl-cache extract --store PLACE --model MODEL --data DATA`.
    """


class StoreIncomplete(StoreNotUsable):
    """Units of the store are missing.

    Run the extract command that began the store again; it writes only what is missing.
    """


class StoreStale(StoreNotUsable):
    """The store was made from another model, data, tap set or text format than what is asked for.

    `sherl-cache explain-stale` shows each difference; ask for what the store holds, or extract into another folder.
    """


class StoreCorrupt(SherlCacheError):
    """Bytes of a store, a run or an export are not what was committed.

    `sherl-cache verify --deep` finds what is damaged in a store and `sherl-cache repair` makes exactly that again; a run is
    trained again with --restart.
    """

    exit_code = 5


class OutOfSpace(SherlCacheError):
    """The disk or a quota is full, or cannot hold what is about to be written.

    Free some space or choose another --store and run the same command again; fewer --taps or --encoding int8 take less,
    `sherl-cache plan` says how much, and `sherl-cache gc` what a store no longer needs.
    """

    exit_code = 6


class OutOfMemory(SherlCacheError):
    """An allocator gave up: there is less memory than was asked for.

    Use a smaller --batch-tokens or --unit-memory in extract, a smaller data.batch_examples, train.micro_batch_examples or
    data.read_budget in train; `sherl-cache plan` says what either takes.
    """

    exit_code = 7


class Interrupted(SherlCacheError):
    """Stopped by a signal, as schedulers send before a time limit.

    Run the same command again; it goes on from what was committed.
    """

    exit_code = 75


class RankLost(Interrupted):
    """Another process of the same training is gone; `exit_code` is its own where it had the time to tell.

    Look at what that process said, put it right, and run the same command again on every rank; it goes on from the newest
    checkpoint.
    """

    def __init__(self, message: str, exit_code: int = Interrupted.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RemoteUnavailable(SherlCacheError):
    """Object storage does not answer, also when asked again.

    See the network, the endpoint and the credentials in the environment, and run the same command later; it goes on.
    """

    exit_code = 75
