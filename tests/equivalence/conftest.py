"""One fork server per test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.faults.harness import ForkServer, fork_server


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """A process that has imported everything and forks a child per case."""
    with fork_server() as running:
        yield running
