"""One served tiny model for every test of the edges."""

from collections.abc import Iterator

import httpx
import pytest

from taskmix_client import Client
from tests.support.collector import Collector, collecting
from tests.support.models import Models, make_models
from tests.support.served import Served, serving


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting() as opened:
        yield opened


@pytest.fixture(scope="session")
def served(
    models: Models, tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[Served]:
    state = tmp_path_factory.mktemp("state")
    flags = ("--log-format", "json", "--otlp-endpoint", collector.url)
    with serving(models.base, models.bank, state, *flags) as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc, timeout_s=60) as opened:
        yield opened


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.http, timeout=60) as opened:
        yield opened
