"""What a real server says of its requests: metrics, a line of log, spans."""

import json
import re
import uuid
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from taskmix.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from taskmix_client import Client, TaskMixError
from tests.support.collector import Collector
from tests.support.served import Served, metrics
from tests.support.waiting import eventually

PROMPT = "a secret that no log has"
DEPLOY = Path(__file__).parents[2] / "deploy"
NUM_TOKENS = 6
BODY: dict[str, Any] = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True}
PAIR = 'mix="a",tenant="default"'
EXPOSED = re.compile(r"\b(?:taskmix_[a-z_]+|vllm:[a-z_]+)\b")


def by_grpc(client: Client, http: httpx.Client) -> str:
    answer = client.generate(PROMPT, mix="a", max_tokens=NUM_TOKENS, ignore_eos=True)
    return str(answer.request_id)


def by_grpc_stream(client: Client, http: httpx.Client) -> str:
    chunks = client.stream(PROMPT, mix="a", max_tokens=NUM_TOKENS, ignore_eos=True)
    (first, *_) = [chunk.request_id for chunk in chunks]
    return str(first)


def by_http(client: Client, http: httpx.Client) -> str:
    response = http.post("/v1/completions", json={**BODY, "model": "a"})
    return str(response.json()["id"]).removeprefix("cmpl-")


def by_http_stream(client: Client, http: httpx.Client) -> str:
    body = {**BODY, "model": "a", "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        (first, *_) = [line for line in response.iter_lines() if line]
    return str(json.loads(first.removeprefix("data: "))["id"]).removeprefix("cmpl-")


WAYS = {"grpc": by_grpc, "grpc stream": by_grpc_stream, "http": by_http, "stream": by_http_stream}


def line_of(served: Served, request_id: str) -> dict[str, Any]:
    """The log's line about a request, which is written just after its answer."""

    def found() -> list[str]:
        return [line for line in served.log.read_text().splitlines() if request_id in line]

    (line,) = eventually(found)
    return dict(json.loads(line))


@pytest.mark.parametrize("way", WAYS)
def test_a_request_is_measured_and_logged(
    client: Client, http: httpx.Client, served: Served, way: str
) -> None:
    before = metrics(served.http)
    request_id = WAYS[way](client, http)
    line = line_of(served, request_id)
    after = metrics(served.http)

    def grown(sample: str) -> float:
        return after[sample] - before.get(sample, 0.0)

    edge = "grpc" if "grpc" in way else "http"
    answers = f'taskmix_requests_total{{edge="{edge}",outcome="ok",reason="",tenant="default"}}'
    assert grown(answers) == 1.0
    assert grown(f"taskmix_prompt_tokens_total{{{PAIR}}}") == len(PROMPT)
    assert grown(f"taskmix_output_tokens_total{{{PAIR}}}") == NUM_TOKENS
    assert grown('taskmix_task_requests_total{task="a"}') == 1.0
    assert grown(f"taskmix_time_to_first_token_seconds_count{{{PAIR}}}") == 1.0
    assert grown(f"taskmix_inter_token_seconds_count{{{PAIR}}}") == 1.0
    assert grown(f"taskmix_request_seconds_count{{{PAIR}}}") == 1.0
    ttft_s = grown(f"taskmix_time_to_first_token_seconds_sum{{{PAIR}}}")
    step_s = grown(f"taskmix_inter_token_seconds_sum{{{PAIR}}}")
    total_s = grown(f"taskmix_request_seconds_sum{{{PAIR}}}")
    assert 0.0 < ttft_s < total_s
    assert 0.0 < step_s * (NUM_TOKENS - 1) <= total_s - ttft_s

    assert line["message"] == "request"
    assert (line["edge"], line["tenant"], line["mix"]) == (edge, "default", "a")
    assert (line["outcome"], line["status"]) == ("ok", "OK" if edge == "grpc" else "200")
    assert (line["prompt_tokens"], line["output_tokens"]) == (len(PROMPT), NUM_TOKENS)
    assert line["ttft_s"] == pytest.approx(ttft_s, abs=1e-6)
    assert PROMPT not in served.log.read_text()


def test_ad_hoc_mixes_share_their_series(
    client: Client, http: httpx.Client, served: Served
) -> None:
    client.generate(PROMPT, mix="a:0.1", max_tokens=1)
    before = metrics(served.http)
    for number in range(25):
        client.generate(PROMPT, mix=f"a:0.5+b:{number}", max_tokens=1)
        body = {"model": f"b:0.25+a:{number}", "prompt": PROMPT, "max_tokens": 1}
        assert http.post("/v1/completions", json=body).status_code == 200
    after = metrics(served.http)
    new = {name for name in after.keys() - before.keys() if 'mix="' in name}
    assert new == set()
    tokens = 'taskmix_output_tokens_total{mix="inline",tenant="default"}'
    assert after[tokens] - before[tokens] == 50.0
    assert not [name for name in after if "b:" in name or "a:0" in name]


@pytest.mark.parametrize("edge", ["grpc", "http"])
def test_spans_reach_a_collector(
    http: httpx.Client, served: Served, collector: Collector, edge: str
) -> None:
    trace_id, parent_id = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    if edge == "grpc":
        ask_by_grpc(served, headers)
    else:
        http.post("/v1/completions", json={**BODY, "model": "a"}, headers=headers)
    names = {"generate", "resolve", "wait", "prefill", "decode"}
    spans = eventually(lambda: (found := collector.trace(trace_id)).keys() == names and found)
    assert spans
    root = spans["generate"]
    assert root.parent_span_id.hex() == parent_id
    attributes = {pair.key: pair.value.string_value for pair in root.attributes}
    assert (attributes["taskmix.edge"], attributes["taskmix.mix"]) == (edge, "a")
    line = line_of(served, attributes["taskmix.request_id"])
    assert (line["trace_id"], line["digest"]) == (trace_id, attributes["taskmix.mix_digest"])
    moments = [root.start_time_unix_nano]
    for name in ("wait", "prefill", "decode"):
        moments += [spans[name].start_time_unix_nano, spans[name].end_time_unix_nano]
    moments.append(root.end_time_unix_nano)
    assert moments == sorted(moments)


def ask_by_grpc(served: Served, metadata: dict[str, str]) -> None:
    request = inference_pb2.GenerateRequest(
        prompt=PROMPT,
        mix=common_pb2.Mix(expression="a"),
        sampling=inference_pb2.Sampling(max_tokens=NUM_TOKENS, ignore_eos=True),
    )
    with grpc.insecure_channel(served.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        stub.Generate(request, timeout=60, metadata=tuple(metadata.items()))


@pytest.mark.parametrize("path", ["grafana/taskmix.json", "prometheus/alerts.yml"])
def test_what_the_dashboard_and_the_alerts_name_is_there(
    client: Client, served: Served, path: str
) -> None:
    client.generate(PROMPT, mix="a", max_tokens=2, ignore_eos=True)
    with pytest.raises(TaskMixError):
        client.generate(PROMPT, mix="nothing")
    there = {name.partition("{")[0] for name in metrics(served.http)}
    assert set(EXPOSED.findall((DEPLOY / path).read_text())) <= there
