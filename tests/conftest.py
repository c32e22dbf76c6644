"""What every test shares: no network, no time limits in property-based tests (machines differ), quiet libraries."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings
from places import PLACES, MakeCopy, copier, s3_server

settings.register_profile("machines differ", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("machines differ")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Address of an S3 server on loopback, one a session; the environment leads there."""
    with s3_server() as address:
        yield address


# S3 answers in milliseconds where disk and memory take microseconds: the fast tests read from it in test_remote.py
@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=[pytest.mark.slow] if kind == "s3" else []) for kind in PLACES]
)
def copied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeCopy:
    """Copies a store from a folder to a place: the tests that read run once over each kind of place."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    return copier(request.param, tmp_path_factory.mktemp("copies"))
