"""The stub of W&B's server."""

from collections.abc import Iterator

import pytest

from tests.wandb_server import WandbServer


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server
    assert not server.unknown
