"""Both clients behind one blocking face, so that one suite runs over the two."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any

import pytest

from taskmix_client import AsyncClient, Client
from tests.unit.client.scripted import Script, serving

Connect = Callable[..., Any]


class Awaiting:
    """An AsyncClient whose every call is awaited at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._open(*arguments, **options))

    async def _open(self, *arguments: Any, **options: Any) -> AsyncClient:
        return await AsyncClient(*arguments, **options).__aenter__()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: self._runner.run(
            getattr(self._client, name)(*arguments, **options)
        )

    def stream(self, *arguments: Any, **options: Any) -> Generator[Any, None, None]:
        return self._drained(self._client.stream(*arguments, **options))

    def _drained(self, chunks: AsyncGenerator[Any, None]) -> Generator[Any, None, None]:
        try:
            while (chunk := self._runner.run(anext(chunks, None))) is not None:
                yield chunk
        finally:
            self._runner.run(chunks.aclose())

    def close(self) -> None:
        self._runner.run(self._client.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture
def script() -> Iterator[Script]:
    with serving(Script()) as served:
        yield served


@pytest.fixture(params=[Client, Awaiting], ids=["sync", "aio"])
def connect(request: pytest.FixtureRequest, script: Script) -> Iterator[Connect]:
    """Open clients of one kind to the scripted server; they are closed after the test."""
    opened: list[Any] = []

    def open_client(*arguments: Any, **options: Any) -> Any:
        opened.append(request.param(script.target, *arguments, **options))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()
