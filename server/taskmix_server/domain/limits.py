"""The most that one request may bring: looked at before anything is done for it.

A mix has limits of its own beside its type (`taskmix_composer.mix`), a connection beside its edge
(`rest/connection.py`, `rpc/server.py`). docs/operations.md lists them all.
"""

from collections.abc import Sequence

from taskmix_server.errors import InvalidRequestError

MAX_REQUEST_BYTES = 16 * 2**20
"""Of a message (gRPC) or a body (HTTP)."""

MAX_HEAD_BYTES = 16 * 2**10
"""Of a call's metadata (gRPC), or a request's line and headers (HTTP)."""

MAX_JSON_DEPTH = 64
"""Objects and lists in each other, of a body."""

MAX_JSON_NESTED = 2**16
"""Objects and lists of a body, in all."""

MAX_JSON_TEXTS = 2**18
"""Texts of a body, names of fields among them."""

MAX_JSON_VALUES = 2**21
"""Values of a body: objects, lists, and what is in them."""

MAX_PROMPT_CHARACTERS = 4 * 2**20
"""Of a prompt, or of all messages of a conversation; the model's own length is far below."""

MAX_PROMPT_TOKENS = 2**20
"""Of a prompt that comes as token ids."""

MAX_MESSAGES = 2048
"""Of a conversation."""

MAX_PROMPTS = 1024
"""Of a body of `/v1/completions`."""

MAX_COMPLETIONS = 128
"""Answers to one prompt (`n`)."""

MAX_MASKS = 4096
"""Of a term of a mix (gRPC)."""

MAX_LENGTH_PENALTY = 10.0
"""A length to a higher power is no float: vLLM's beam search divides by it."""

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
"""Of one stop string."""


def check_stop(stop: Sequence[str]) -> None:
    """InvalidRequestError for too many stop strings, or for one that is empty or too long."""
    if len(stop) > MAX_STOP_STRINGS or not all(stop):
        raise InvalidRequestError(
            f"stop takes at most {MAX_STOP_STRINGS} texts, none of them empty"
        )
    if any(len(text) > MAX_STOP_CHARACTERS for text in stop):
        raise InvalidRequestError(f"a stop text has at most {MAX_STOP_CHARACTERS} characters")


def check_text(num_characters: int) -> None:
    """InvalidRequestError for a prompt that is too long to be looked at."""
    check_count(num_characters, MAX_PROMPT_CHARACTERS, "characters of prompt")


def check_count(num: int, most: int, what: str) -> None:
    """InvalidRequestError for more than `most`."""
    if num > most:
        raise InvalidRequestError(f"a request has at most {most} {what}, got {num}")
