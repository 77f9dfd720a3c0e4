"""Keys and values are reused within a mix and never across mixes."""

from taskmix_client import Client

PROMPT = "a prompt of less than a hundred characters, which fills two blocks of thirty-two"
BLOCK = 32
WHOLE_BLOCKS = (len(PROMPT) - 1) // BLOCK * BLOCK


def cached(client: Client, mix: str) -> int:
    return client.generate(PROMPT, mix=mix, max_tokens=1).usage.cached_tokens


def test_reuse_stays_within_a_mix(client: Client) -> None:
    mixes = ("base", "a:0.9", "a:0.9+c:0.1", "a:-0.9", "b:0.9")
    assert [cached(client, mix) for mix in mixes] == [0] * len(mixes)
    assert [cached(client, mix) for mix in mixes] == [WHOLE_BLOCKS] * len(mixes)


def test_equal_mixes_share(client: Client) -> None:
    assert cached(client, "b:0.4+c:0.3") == 0
    assert cached(client, "c:0.1+b:0.4+c:0.2") == 0  # 0.1 + 0.2 is not 0.3 in float64
    assert cached(client, "c:0.3+b:0.4+a:0") == WHOLE_BLOCKS


def test_streams_count_too(client: Client) -> None:
    options = {"mix": "c:0.7", "max_tokens": 1}
    *_, first = client.stream(PROMPT, **options)
    *_, again = client.stream(PROMPT, **options)
    assert first.usage is not None
    assert again.usage is not None
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, WHOLE_BLOCKS)
