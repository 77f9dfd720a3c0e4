"""TLS on both edges, from files that are replaced under them."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from taskmix_client import AsyncClient, UnavailableError
from taskmix_server.errors import FailedPreconditionError
from taskmix_server.rest.tls import tls_factory
from taskmix_server.rpc.server import GrpcEdge
from taskmix_server.runtime.certificates import CertificateFiles
from tests.support.certificates import Authority, issue, replace
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import answered


@pytest.fixture
def first(tmp_path: Path) -> Authority:
    return issue(tmp_path, "first")


async def served_by(port: int, authority: Authority) -> bool:
    """Whether the HTTP edge's certificate is one that the authority signed."""
    context = ssl.create_default_context(cafile=authority.ca)
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except ssl.SSLCertVerificationError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@pytest.fixture
async def http_port(first: Authority) -> AsyncIterator[int]:
    factory = tls_factory(CertificateFiles(first.chain, first.key))
    config = uvicorn.Config(answered, log_config=None, lifespan="off", ssl_context_factory=factory)
    config.load()
    assert config.ssl is not None
    make: Any = config.http_protocol_class
    server = await asyncio.get_running_loop().create_server(
        lambda: make(config=config, server_state=uvicorn.server.ServerState(), app_state={}),
        "127.0.0.1",
        0,
        ssl=config.ssl,
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_http_takes_the_new_certificate(
    http_port: int, first: Authority, tmp_path: Path
) -> None:
    assert await served_by(http_port, first)
    second = issue(tmp_path, "second")
    assert await served_by(http_port, second)
    assert not await served_by(http_port, first)


async def test_grpc_takes_the_new_certificate(
    parts: Parts, first: Authority, tmp_path: Path
) -> None:
    edge = GrpcEdge(parts.services, CertificateFiles(first.chain, first.key))
    target = f"127.0.0.1:{await edge.start('127.0.0.1', 0)}"
    async with AsyncClient(target, ca=first.ca, timeout_s=20) as client:
        assert [task.name for task in await client.tasks()] == ["body", "head", "late"]
        second = issue(tmp_path, "second")
        async with AsyncClient(target, ca=second.ca, timeout_s=20) as newer:
            assert (await newer.tasks())[0].name == "body"
        assert await client.tasks()  # an open connection goes on
    for config in ({"ca": first.ca}, {"tls": True}, {}):
        async with AsyncClient(target, timeout_s=20, max_attempts=1, **config) as other:  # type: ignore[arg-type]
            with pytest.raises(UnavailableError):
                await other.tasks()
    await edge.stop(0.0)


def test_files_that_do_not_fit_are_passed_over(
    first: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = CertificateFiles(first.chain, first.key)
    before = files.current
    assert files.current is before
    chain, key = first.chain.read_bytes(), first.key.read_bytes()
    issue(tmp_path, "second")
    replace(first.key, key)  # the new chain has come, its key has not
    assert files.current is before
    assert "the old stay in use" in caplog.text
    first.chain.unlink()
    assert files.current is before
    replace(first.chain, chain)
    assert files.current is before  # what they held at first
    issue(tmp_path, "third")
    assert files.current is not before
    assert files.current is files.current


def test_a_change_is_seen_by_its_time_alone(first: Authority, tmp_path: Path) -> None:
    files = CertificateFiles(first.chain, first.key)
    before = files.current
    os.utime(first.chain, ns=(1, 1))
    assert files.current is before  # read again, and the same


@pytest.mark.parametrize("content", [b"", b"no pem", None])
def test_wrong_files_are_refused_at_the_start(first: Authority, content: bytes | None) -> None:
    if content is None:
        first.key.unlink()
    else:
        first.key.write_bytes(content)
    with pytest.raises(FailedPreconditionError, match="--tls-cert and --tls-key"):
        CertificateFiles(first.chain, first.key)
