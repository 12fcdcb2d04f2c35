from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
from servers import Server

import stepwell as sw
from stepwell import _reporting


@pytest.fixture(scope="session", params=["sqlite", "mongodb"])
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that tests leave alone."""
    server = Server(request.param).start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "mongodb"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that a test may kill; started."""
    server = Server(request.param).start()
    yield server
    server.stop()


@pytest.fixture
def spool(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "spool"


@pytest.fixture(autouse=True)
def no_client_is_left() -> Iterator[None]:
    yield
    left = _reporting.swap(None)
    if left is not None:
        left.shutdown(0.0)


@pytest.fixture
def client(shared: Server, spool: pathlib.Path) -> sw.Client:
    """The client of this process, with a server that stays."""
    return sw.configure(shared.address, app="tests", spool_dir=spool)


@pytest.fixture
def api(shared: Server) -> Iterator[sw.Api]:
    with sw.Api(shared.address) as api:
        yield api
