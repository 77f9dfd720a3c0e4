"""Bodies of HTTP requests by schemathesis, from our own OpenAPI document."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import reject
from hypothesis import strategies as st
from schemathesis import GenerationMode

MAX_CHANGES = 3
DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
EXAMPLES: Mapping[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "a:0.5+b:0.5", "prompt": "x", "max_tokens": 2, "temperature": 0.0},
    CHAT: {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
}

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ODD: Mapping[str, Sequence[Any]] = {
    "model": ("c", "a:-1", "experiment:nosuch", '{"terms": []}', "\ud800", "a" * 5000, "a\0"),
    "task_mix": ({"terms": [{"task": "a", "masks": ["ties.a"]}]}, {"method": "metagpt"}, [], 1),
    "prompt": ([1, 2], [[1], [2]], ["x", "y"], [], [[]], [""], [-1], [319], [320], [2**70], "\0"),
    "messages": (
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}],
        [{"role": "tool", "tool_call_id": "1", "content": None}],
    ),
    "stream": (True,),
    "stream_options": ({"include_usage": True}, {"continuous_usage_stats": True}),
    "stream_interval": (1, 2**40),
    "n": (0, 2, 3, 129, 2.0, True),
    "use_beam_search": (True,),
    "length_penalty": (0.0, -1e300),
    "logprobs": (0, 1, 20, 21, -1, True),
    "top_logprobs": (1, 20, -1),
    "prompt_logprobs": (0, 1, -1, -2),
    "logprob_token_ids": ([1, 2], [-1], [10**6], []),
    "echo": (True,),
    "logit_bias": ({"1": 100}, {"-1": 1}, {"1000000": 1}, {"x": 1}, {"1": 1e308}),
    "allowed_token_ids": ([1], [], [-1], [319], [320], [10**6]),
    "bad_words": (["x"], [""], ["\0"], ["x" * 1000]),
    "stop": ("x", "", [], ["\0"], ["x"] * 5),
    "stop_token_ids": ([1], [-1], [10**6], [2**70]),
    "min_tokens": (2, 3, -1, 2**31, 2**40),
    "max_tokens": (0, 1, 8, 9, -1, 2**70, None),
    "max_completion_tokens": (0, 1, 2**70),
    "temperature": (1.0, 2.0, 1e-300, 1e300, -1),
    "top_p": (0.5, 0.0, 1e-300, 2),
    "top_k": (1, -1, 0, 2**31, 2**40, 2**70),
    "min_p": (0.5, 1.0, 2),
    "repetition_penalty": (1e-300, 1e300, 0),
    "seed": (0, -1, 2**63 - 1, -(2**63), 2**63),
    "truncate_prompt_tokens": (-1, 0, 1, 2**62),
    "structured_outputs": (
        *({"regex": "a+"}, {"regex": "("}, {"regex": "(a{1000}){1000}"}, {"choice": ["a", "b"]}),
        *({"choice": []}, {"json": _SCHEMA}, {"json": {"$ref": "#"}}, {"json": "{"}),
        *({"grammar": 'root ::= "a"'}, {"grammar": "x"}, {"json_object": True}, {}),
        {"structural_tag": "{}"},
    ),
    "response_format": (
        *({"type": "json_object"}, {"type": "text"}, {"type": "json_schema"}),
        {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nosuch"}}},
        {"type": "structural_tag", "format": {"type": "any_text"}},
    ),
    "tools": ([{"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}], []),
    "tool_choice": ("auto", "required", {"type": "function", "function": {"name": "f"}}),
    "chat_template": ("{{ messages }}", "{% for x in range(9) %}", "{{ 1/0 }}", "{{ x.y.z }}"),
    "chat_template_kwargs": ({"add_generation_prompt": 1}, {"messages": 1}, {"tokenize": True}),
    "add_generation_prompt": (False,),
    "continue_final_message": (True,),
    "documents": ([{"a": "b"}], []),
    "prompt_embeds": ("AAAA", [""], b"".hex()),
    "kv_transfer_params": ({"do_remote_decode": True}, {"x": []}),
    "ec_transfer_params": ({"x": 1},),
    "vllm_xargs": ({"x": 1}, {"x": [1, "a"]}),
    "repetition_detection": ({"max_pattern_size": 1}, {"max_pattern_size": -1}, {}),
    "thinking_token_budget": (0, 1, -1, 2**40),
    "reasoning_effort": ("low", "none"),
    "mm_processor_kwargs": ({"x": 1},),
    "suffix": ("x",),
    "priority": (0, 1, 2**62, 1.5),
    "user": ("u", "\0"),
    "return_token_ids": (True,),
    "return_tokens_as_token_ids": (True,),
    "return_token_offsets": (True,),
    "return_prompt_text": (True,),
    "routed_experts_prompt_start": (1, 2**40),
    "watermarking": (True,),
    "session_id": ("s", ""),
    "cache_salt": ("s", ""),
    "request_id": ("r", "\n", ""),
}
"""Values of fields that are at a limit, or that the server has to look into."""


@cache
def _schema() -> Any:
    return schemathesis.openapi.from_dict(json.loads(DOCUMENT.read_text(encoding="utf-8")))


def cases(path: str) -> st.SearchStrategy[Any]:
    """schemathesis's cases of a generation route: within the document, and outside of it."""
    operation = _schema()[path]["POST"]
    return st.one_of(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        _outside(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)),
    )


@st.composite
def _outside(draw: st.DrawFn, strategy: st.SearchStrategy[Any]) -> Any:
    """Without the cases that schemathesis cannot check itself: bytes in place of an object."""
    try:
        return draw(strategy)
    except ValueError as error:
        if "Unsupported type: 'Binary'" not in str(error):
            raise
        reject()


def bodies(path: str) -> st.SearchStrategy[bytes]:
    """The bodies of `cases`, whole or a few of their fields over a body that can be served; and
    that body with odd values."""
    return st.one_of(cases(path).map(lambda case: _wire(case.body)), _changed(path), _odd(path))


def odd_bodies(path: str) -> list[bytes]:
    """A body that can be served with each odd value, as an answer and as a stream."""
    return [
        _wire({**EXAMPLES[path], "stream": is_stream, name: value})
        for name, values in ODD.items()
        for value in values
        for is_stream in (False, True)
    ]


@st.composite
def _changed(draw: st.DrawFn, path: str) -> bytes:
    body = draw(cases(path)).body
    if not isinstance(body, dict) or not body:
        return _wire(body)
    fields = draw(st.lists(st.sampled_from(sorted(body)), max_size=MAX_CHANGES, unique=True))
    return _wire({**EXAMPLES[path], **{field: body[field] for field in fields}})


@st.composite
def _odd(draw: st.DrawFn, path: str) -> bytes:
    fields = draw(st.lists(st.sampled_from(sorted(ODD)), min_size=1, max_size=MAX_CHANGES))
    return _wire(
        {**EXAMPLES[path], **{field: draw(st.sampled_from(ODD[field])) for field in fields}}
    )


def _wire(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body, default=str).encode()
