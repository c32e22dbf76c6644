"""One store and one cluster of threads for the tests of a module."""

from collections.abc import Iterator

import pytest
import torch
from cluster_cases import Subject, threads
from distributed import Client
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline.cluster.connect import Connection
from sherl_cache.stages.extract import extract_missing
from sherl_cache.stages.front import Front
from sherl_cache.stages.prepare import ExtractSettings, prepare


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    root = tmp_path_factory.mktemp("subject")
    model, data = tiny_bert(root / "model"), write_csv(root / "train.csv", 90)
    settings = ExtractSettings(
        model=str(model), data=str(data), unit_memory=24 << 10, chunk_bytes=1 << 10, batch_tokens=64
    )
    prepared = prepare(settings, root, torch.device("cpu"))
    writer = prepared.create_writer(root / "lone")
    assert len(writer.missing()) >= 12
    extract_missing(Front(prepared.loaded, prepared.taps), writer, settings.batch_tokens)
    return Subject(prepared, writer.finalize().digest)


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with threads() as cluster, Client(cluster, set_as_default=False) as client:
        yield Connection(client, one_job=True)
