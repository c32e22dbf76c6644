"""What may be said to be a store's place, and what a message may repeat of it."""

from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import CANARY

from sherl_cache.storage import MemoryFiles, RemotePlace, Store, StoreWriter, verify_store
from sherl_cache.storage.errors import StoreCorrupt, StoreMissing, UsageError
from sherl_cache.storage.place import parse_place, redacted


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("./cache", Path("cache")),
        ("/data/a b", Path("/data/a b")),
        ("file:///data/a%20b", Path("/data/a b")),
        ("./s3://x", Path("s3:/x")),
        ("s3://bucket", RemotePlace("s3", "bucket")),
        ("S3://bucket/a/b/", RemotePlace("s3", "bucket", "a/b")),
        ("gs://bucket/a b", RemotePlace("gs", "bucket", "a b")),
        ("az://container/a", RemotePlace("az", "container", "a")),
        ("memory://name", RemotePlace("memory", "name")),
    ],
)
def test_places_are_read_as_they_are_meant(text: str, place: object) -> None:
    assert parse_place(text) == place


def test_a_place_and_its_text_are_the_same_place() -> None:
    for text in ("s3://bucket", "gs://bucket/a/b", "memory://name"):
        assert str(parse_place(text)) == text
        assert parse_place(str(parse_place(text))) == parse_place(text)
    assert str(RemotePlace("s3", "bucket") / "a/b") == "s3://bucket/a/b"


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{CANARY}@host/store",
        f"https://host/store?sig={CANARY}",
        f"s3://key:{CANARY}@bucket/store",
        f"s3://key:with/slash/{CANARY}@bucket/store",
        f"s3://bucket/store?X-Amz-Signature={CANARY}",
        f"az://container/store#{CANARY}",
        f"simplecache::s3://key:{CANARY}@bucket/store",
        f"s3://bucket/a::https://host/x?token={CANARY}",
        f"ftp://user:{CANARY}@host/",
        f"file://user:{CANARY}@host/store",
        f"s3:/key:{CANARY}@bucket",
        "s3://",
        "s3:///store",
        "s3://bucket/a/../b",
        "s3://bucket/./b",
        "s3://bucket/a//b",
        "s3://bucket/a\nb",
        "s3://bucket/a\\b",
        "memory://name/inside",
        "file://host/store",
        "file://store",
        "s3:/bucket/store",
        "s3:bucket",
    ],
)
def test_other_places_are_refused_without_repeating_a_secret(text: str) -> None:
    for use in (parse_place, Store.open, verify_store, StoreWriter.open):
        with pytest.raises(UsageError) as caught:
            use(text)
        assert CANARY not in str(caught.value)


def test_a_url_that_became_a_path_is_told_apart_from_a_folder() -> None:
    with pytest.raises(UsageError, match="as a string"):
        Store.open(Path("s3://bucket/store"))


@given(st.text())
def test_any_text_is_a_place_or_a_usage_error(text: str) -> None:
    try:
        place = parse_place(text)
    except UsageError:
        return
    if isinstance(place, RemotePlace):
        assert not {"..", ""} & set(place.prefix.split("/") if place.prefix else [])


@given(st.text(), st.text())
def test_userinfo_and_queries_never_come_out_of_redaction(before: str, after: str) -> None:
    assert CANARY not in redacted(f"s3://{before.replace('/', '')}{CANARY}@{after}")
    assert CANARY not in redacted(f"s3://bucket/{before}?{CANARY}{after}")


@pytest.mark.parametrize("place", ["s3://bucket/store", "gs://bucket/store", "memory://name"])
def test_writing_elsewhere_than_to_a_disk_is_refused_with_the_way_there(builders: ModuleType, place: str) -> None:
    case = builders.Case()
    for write in (lambda: case.create(place), lambda: StoreWriter.open(place)):
        with pytest.raises(UsageError, match=f"copy it whole.*{place}.*verif"):
            write()


def test_memory_holds_a_copy_and_forgets_it(builders: ModuleType, tmp_path: Path) -> None:
    built = builders.Case().build(tmp_path / "store")
    files = MemoryFiles.named("held").load(tmp_path / "store")
    assert MemoryFiles.named("held") is files
    assert Store.open("memory://held").digest == built.digest
    (tmp_path / "store" / "link").symlink_to("zarr.json")
    with pytest.raises(StoreCorrupt, match="no links"):
        files.load(tmp_path / "store")
    MemoryFiles.forget("held")
    with pytest.raises(StoreMissing, match="memory://held"):
        Store.open("memory://held")
    with pytest.raises(StoreCorrupt, match="not a name"):
        files.put("../outside", b"")
