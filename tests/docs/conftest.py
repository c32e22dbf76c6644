"""One process with warm imports, for every test of the documentation in a session."""

from collections.abc import Iterator

import pytest
from warm_commands import Warm


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.close()
