"""Both clients, every call once, on the real server."""

from taskmix_client import AsyncClient, Client
from tests.support.served import Served

CALL = {"mix": {"a": 0.6, "b": 0.4}, "max_tokens": 6, "temperature": 0.0}


def test_sync(client: Client) -> None:
    answer = client.generate("2 + 2 =", **CALL)
    chunks = list(client.stream("2 + 2 =", **CALL))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert [task.name for task in client.tasks()] == ["a", "b", "c"]
    assert client.register_mix("prod", "a:0.6+b:0.4").mix_digest == answer.mix_digest
    assert [mix.name for mix in client.mixes()] == ["prod"]
    client.delete_mix("prod")
    assert client.mixes() == ()


async def test_async(served: Served, client: Client) -> None:
    expected = client.generate("2 + 2 =", **CALL)
    async with AsyncClient(served.grpc, timeout_s=60) as opened:
        answer = await opened.generate("2 + 2 =", **CALL)
        assert answer.completions == expected.completions
        texts = [chunk.text async for chunk in opened.stream("2 + 2 =", **CALL)]
        assert "".join(texts) == answer.text
        assert [task.name for task in await opened.tasks()] == ["a", "b", "c"]
        assert (await opened.load_task("a")).state == "resident"
        await opened.register_mix("prod", "a:0.6+b:0.4")
        assert [mix.mix_digest for mix in await opened.mixes()] == [expected.mix_digest]
        await opened.delete_mix("prod")
        assert await opened.mixes() == ()
