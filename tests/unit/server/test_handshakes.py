"""Many connect at the same moment, also while the certificate is renewed."""

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from taskmix_server.rpc.server import CHANGE_S, credentials
from taskmix_server.runtime.certificates import CertificateFiles
from tests.support.certificates import Authority, issue

NUM_THREADS = 8
NUM_HANDSHAKES = 3000
NUM_RENEWALS = 8


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return issue(tmp_path, "first")


@pytest.fixture
def port(authority: Authority) -> Iterator[int]:
    command = [
        sys.executable,
        "-m",
        "tests.unit.server.handshaking",
        authority.chain,
        authority.key,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        assert process.poll() is None, "the server is gone"
        process.kill()


def handshake(port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
        context.wrap_socket(connection),
    ):
        pass


def test_many_at_once(port: int) -> None:
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        list(threads.map(handshake, [port] * NUM_HANDSHAKES))


def test_while_the_certificate_is_renewed(port: int, authority: Authority) -> None:
    directory = authority.chain.parent
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for number in range(NUM_RENEWALS):
            connecting = [threads.submit(handshake, port) for _ in range(200)]
            renewed = issue(directory, f"renewed-{number}")
            for done in connecting:
                done.result()
            trusting = ssl.create_default_context(cafile=renewed.ca)
            trusting.set_alpn_protocols(["h2"])
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                trusting.wrap_socket(connection, server_hostname="127.0.0.1").close()


def test_grpc_is_given_a_certificate_only_when_it_is_new(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then a moment after it has asked: see `credentials`."""
    given: list[Callable[[], object]] = []
    monkeypatch.setattr(
        grpc, "dynamic_ssl_server_credentials", lambda first, ask: given.append(ask)
    )
    credentials(CertificateFiles(authority.chain, authority.key))
    (ask,) = given
    assert ask() is None
    issue(authority.chain.parent, "renewed")
    asked_s = time.monotonic()
    assert ask() is not None
    assert time.monotonic() - asked_s >= CHANGE_S
    assert ask() is None
