"""Stores on S3 through a real client and a real server on loopback, with and without what networks do."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flaky_s3 import FlakyS3, flaky_s3
from places import BUCKET, CANARY, S3Copy, lead_to

from sherl_cache.storage import Batch, Store, Stream, verify_store
from sherl_cache.storage.errors import (
    AccessDenied,
    RemoteUnavailable,
    SherlCacheError,
    StoreCorrupt,
    StoreMissing,
    UsageError,
)
from sherl_cache.storage.readers import remote

SHARD = "train/encoder/h02/c/1/0"


@pytest.fixture(scope="module")
def built(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return builders.Case().build(tmp_path_factory.mktemp("remote") / "store")


@pytest.fixture
def copy(built: Store, s3: str) -> S3Copy:
    assert isinstance(built.root, Path)
    return S3Copy(built.root)


@pytest.fixture
def flaky(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    """The way to S3, with faults to be chosen; the client tries again sooner than it usually does."""
    pauses = {"init_backoff": remote.timedelta(milliseconds=1), "max_backoff": remote.timedelta(milliseconds=5)}
    monkeypatch.setitem(remote._RETRY, "backoff", {**pauses, "base": 2})
    with flaky_s3(s3) as between:
        lead_to(monkeypatch, between.address)
        yield between


def batches(store: Store, **options: object) -> list[Batch]:
    settings = {"batch_examples": 7, "window": 3, "budget_bytes": 1 << 24, "seed": 5, **options}
    stream = Stream(store, "train", {"encoder": (0, 2), "decoder": (1,)}, **settings)
    return [batch.copy() for batch in stream.epoch(0)]


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.examples, b.examples)
        for name, rows in a.streams.items():
            np.testing.assert_array_equal(rows.taps, b.streams[name].taps)


def test_a_copy_on_s3_is_the_store_that_was_copied(built: Store, copy: S3Copy) -> None:
    store = Store.open(copy.place)
    assert (str(store.root), store.digest, store.bytes) == (copy.place, built.digest, built.bytes)
    assert store.verify(deep=True) == []
    for path in store.plan.files:
        assert store.file(path) == built.file(path)
    for split in store.plan.splits:
        one, other = store.examples(split), built.examples(split)
        for name in ("source_id", "label", "encoder_offset", "decoder_length"):
            assert one.column(name).equals(other.column(name))
        for stream, plan in store.split(split).streams.items():
            for tap in plan.taps:
                for group in range(store.split(split).groups):
                    np.testing.assert_array_equal(
                        store.chunk(split, stream, tap, group), built.chunk(split, stream, tap, group)
                    )


@pytest.mark.parametrize("options", [{}, {"threads": 4}, {"shuffle": False, "threads": 2}, {"window": 1}])
def test_batches_from_s3_equal_those_from_disk(built: Store, copy: S3Copy, options: dict[str, int]) -> None:
    assert_equal(batches(Store.open(copy.place), **options), batches(built, **options))


@pytest.mark.parametrize("damage", ["flipped", "missing", "cut"])
def test_damage_on_s3_is_met_before_its_batch_and_found_by_verify(copy: S3Copy, damage: str) -> None:
    store = Store.open(copy.place)
    data = copy.read(SHARD)
    if damage == "missing":
        copy.remove(SHARD)
    else:
        copy.write(SHARD, data[:-9] if damage == "cut" else data[:33] + bytes([data[33] ^ 4]) + data[34:])
    with pytest.raises(StoreCorrupt, match=f"train/encoder/h02: {copy.place}/{SHARD}: "):
        batches(store, threads=3)
    assert {finding.path for finding in verify_store(copy.place, deep=True)} == {SHARD}
    if damage != "flipped":
        with pytest.raises(StoreCorrupt, match=SHARD):
            Store.open(copy.place)


def test_large_files_come_in_pieces(
    built: Store, copy: S3Copy, flaky: FlakyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.RemoteFiles, "request_bytes", 1000)
    store = Store.open(copy.place)
    flaky.ranges.clear()
    assert store.file("weights/head.safetensors") == built.file("weights/head.safetensors")
    assert [words.rpartition("=")[2] for words in flaky.ranges] == ["0-999", "1000-1999", "2000-2303"]
    assert store.files.digest(SHARD) == built.files.digest(SHARD)
    with pytest.raises(StoreCorrupt, match="at most 5 can be right"):
        store.files.read("sherl/weights/head.safetensors", 5)


def test_a_prefix_is_not_the_start_of_a_name(copy: S3Copy) -> None:
    with pytest.raises(StoreMissing, match="no store here"):
        Store.open(copy.place[:-1])
    with pytest.raises(StoreMissing, match="no store here"):
        Store.open(f"{copy.place}0")
    with pytest.raises(StoreMissing, match="no store here"):
        Store.open("s3://no-such-bucket/store")


def test_what_fails_for_a_moment_is_tried_again(built: Store, copy: S3Copy, flaky: FlakyS3) -> None:
    flaky.answer = lambda number, method, path: (500, 503, "cut", None)[number % 4]
    store = Store.open(copy.place)
    assert_equal(batches(store, threads=2), batches(built))
    assert store.verify(deep=True) == []


def test_what_fails_for_good_is_unavailable_after_a_bounded_number_of_tries(copy: S3Copy, flaky: FlakyS3) -> None:
    store = Store.open(copy.place)
    flaky.answer = lambda number, method, path: 503
    flaky.requests.clear()
    with pytest.raises(RemoteUnavailable, match=rf"{copy.place}/{SHARD}: .*status 503") as caught:
        store.chunk("train", "encoder", 2, store.split("train").groups_per_unit)
    assert caught.value.exit_code == 75
    assert 2 <= len(flaky.requests) <= 32
    with pytest.raises(RemoteUnavailable, match="503"):
        verify_store(copy.place)


def test_a_body_that_always_ends_early_is_unavailable_and_never_served(copy: S3Copy, flaky: FlakyS3) -> None:
    store = Store.open(copy.place)
    flaky.answer = lambda number, method, path: "cut"
    with pytest.raises(RemoteUnavailable, match=copy.place):
        batches(store)


def test_nobody_at_the_address_is_unavailable(copy: S3Copy, flaky: FlakyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_to(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(RemoteUnavailable, match="does not answer"):
        Store.open(copy.place)


def test_a_proxy_is_passed_by_where_the_environment_says_so(copy: S3Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Store.open(copy.place).complete


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_access_denied(copy: S3Copy, flaky: FlakyS3, status: int) -> None:
    flaky.answer = lambda number, method, path: status
    with pytest.raises(AccessDenied, match="credentials"):
        Store.open(copy.place)


@pytest.mark.parametrize("answer", [400, 403, 404, 301, 500, "cut"])
def test_no_message_or_traceback_holds_a_secret(copy: S3Copy, flaky: FlakyS3, answer: int | str) -> None:
    """Tracebacks too: what an error was raised from would be printed with it."""
    flaky.answer = lambda number, method, path: answer
    with pytest.raises(SherlCacheError) as caught:
        Store.open(copy.place)
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error)
        assert "127.0.0.1" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert CANARY not in repr(vars(remote.RemoteFiles("s3", BUCKET, "x")))


def test_threads_wait_for_the_server_together(copy: S3Copy, flaky: FlakyS3) -> None:
    """No range is answered before four were asked for: with fewer requests in flight nothing would ever come."""
    store = Store.open(copy.place)
    batches(store)  # the indexes of the shards are read
    together, met = threading.Barrier(4), threading.Event()

    def answer(number: int, method: str, path: str) -> None:
        if not met.is_set():
            together.wait(30)
            met.set()

    flaky.answer = answer
    batches(store, threads=4)
    assert met.is_set()


def test_a_chunk_is_one_request(built: Store, copy: S3Copy, flaky: FlakyS3) -> None:
    store = Store.open(copy.place)
    everything = {"shuffle": False, "window": 1000}
    wanted = batches(built, **everything)
    batches(store, **everything)  # the indexes of the shards are read
    flaky.ranges.clear()
    assert_equal(batches(store, **everything), wanted)
    assert len(flaky.ranges) == 3 * store.split("train").groups
    flaky.ranges.clear()
    least = next(budget for budget in range(1, 1 << 20, 512) if fits(store, budget))
    tight = {"window": 1, "batch_examples": 1, "shuffle": False, "budget_bytes": least}
    assert_equal(batches(store, **tight), batches(built, **{**tight, "budget_bytes": 1 << 24}))
    assert len(flaky.ranges) == 3 * store.split("train").groups


def fits(store: Store, budget: int) -> bool:
    taps = {"encoder": (0, 2), "decoder": (1,)}
    try:
        Stream(store, "train", taps, batch_examples=1, window=1, shuffle=False, budget_bytes=budget)
    except SherlCacheError:
        return False
    return True


def test_files_are_listed_once_and_only_where_the_store_lies(copy: S3Copy, flaky: FlakyS3) -> None:
    Store.open(copy.place)
    lists = [request for request in flaky.requests if "list-type" in request]
    assert len(lists) == 3
    prefix = copy.place.rpartition("/")[2]
    assert all(f"prefix=stores%2F{prefix}%2F" in request or f"prefix=stores/{prefix}/" in request for request in lists)


def test_without_obstore_the_extra_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"sherl-cache\[remote\]"):
        Store.open("s3://bucket/store")


LEAVES_EARLY = """
import sys
from sherl_cache.storage import Store, Stream
store = Store.open(sys.argv[1])
batches = Stream(store, "train", {"encoder": (0, 2)}, batch_examples=3, window=2, budget_bytes=1 << 24, threads=3).epoch(0)
next(batches)
print("first")
"""


def test_a_process_that_leaves_in_mid_stream_ends_in_silence(copy: S3Copy) -> None:
    command = [sys.executable, "-W", "error", "-c", LEAVES_EARLY, copy.place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "first\n", "")
