"""Unexpected input to a served process through both edges, and what may come of it."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TypeVar

import grpc
import httpx
from grpc import StatusCode
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from taskmix_client import TenantLimits
from tests.support.bodies import CHAT, COMPLETIONS, bodies, odd_bodies
from tests.support.examples import RPCS, example
from tests.support.guarded import Guarded
from tests.support.messages import wires
from tests.support.served import samples
from tests.support.waiting import eventually

SEED = 20_250_419
ANSWER_S = 30.0
MAX_OUTPUT_TOKENS = 8
HELD = ("taskmix_requests_running", "taskmix_requests_waiting", "taskmix_task_references")
CALLERS = ("ops", "ops", "alice", "carol", "")
"""An admin, tenants with some rights and with few, and no key at all."""

EXPECTED = frozenset(
    (
        *(StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND),
        *(StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED),
        *(StatusCode.ALREADY_EXISTS, StatusCode.FAILED_PRECONDITION),
        StatusCode.RESOURCE_EXHAUSTED,
    )
)
"""Statuses that tell a caller what is wrong with its call; any other is a fault of the server."""

Input = TypeVar("Input")
Attempt = Callable[[str, Input], tuple[str, str]]
"""Sends an input as a caller: the status, and what is wrong with it, empty if nothing."""


@dataclass
class Tally:
    """How often each status was answered, and the inputs with an answer that may not be."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, caller: str, drawn: object, status: str, fault: str) -> None:
        """Count what an input of a caller was answered."""
        self.statuses[status] += 1
        if fault:
            self.faults.append(f"{status} {fault}, to {caller or 'nobody'}: {drawn!r}")


def fuzz(
    inputs: st.SearchStrategy[Input], attempt: Attempt[Input], num: int, start: int, tally: Tally
) -> None:
    """Try `num` inputs, or all that differ; the same ones for the same `start`."""
    source = random.Random(start)

    @seed(start)
    @settings(
        max_examples=num,
        deadline=None,
        derandomize=False,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def once(drawn: Input) -> None:
        caller = source.choice(CALLERS)
        tally.add(caller, drawn, *attempt(caller, drawn))

    once()


def fuzz_grpc(guarded: Guarded, num_rounds: int, num_per_rpc: int) -> Mapping[str, Tally]:
    """Random and damaged messages to every RPC, so many in each round; by the RPC's path."""
    tallies = {path: Tally() for path in RPCS}
    credentials = grpc.ssl_channel_credentials(guarded.authority.ca.read_bytes())
    with grpc.secure_channel(guarded.served.grpc, credentials) as channel:
        for start in range(SEED, SEED + num_rounds):
            load_all(guarded)
            for path, tally in tallies.items():
                sender = _sender(channel, path, guarded.keys)
                fuzz(_calls(path), sender, num_per_rpc, start, tally)
    return tallies


def fuzz_odd_values(guarded: Guarded) -> Mapping[str, Tally]:
    """Every value that is known to be odd, by an admin; by the route's path."""
    load_all(guarded)
    tallies = {path: Tally() for path in (COMPLETIONS, CHAT)}
    with guarded.http("ops") as http:
        for path, tally in tallies.items():
            post = _poster({"ops": http}, path)
            for body in odd_bodies(path):
                tally.add("ops", body, *post("ops", body))
    return tallies


def fuzz_http(guarded: Guarded, num_per_route: int) -> Mapping[str, Tally]:
    """Bodies to both generation routes; by their path."""
    load_all(guarded)
    tallies = {path: Tally() for path in (COMPLETIONS, CHAT)}
    with ExitStack() as opened:
        https = {name: opened.enter_context(guarded.http(name)) for name in set(CALLERS)}
        for path, tally in tallies.items():
            fuzz(bodies(path), _poster(https, path), num_per_route, SEED, tally)
    return tallies


@contextmanager
def short_answers(guarded: Guarded) -> Iterator[None]:
    """Hold the tenants to few tokens, so that no input takes long by asking for many; at the end
    remove the tenants that inputs have made."""
    with guarded.client("ops") as ops:
        before = {tenant.name: tenant for tenant in ops.tenants()}
        for tenant in before.values():
            limits = TenantLimits(max_output_tokens=MAX_OUTPUT_TOKENS)
            ops.update_tenant(replace(tenant, limits=limits))
        yield
        for tenant in ops.tenants():
            if tenant.name in before:
                ops.update_tenant(before[tenant.name])
            else:
                ops.delete_tenant(tenant.name)


def load_all(guarded: Guarded) -> None:
    """Inputs unload tasks, too."""
    with guarded.client("ops") as ops:
        for task in "abc":
            ops.load_task(task)


def still_answers(guarded: Guarded) -> None:
    """Nothing is left of the inputs: no request, no reference, and the same engine serves."""
    load_all(guarded)
    with guarded.client("ops") as ops, guarded.http("ops") as http:
        assert ops.generate("x", mix="a:0.5+b:0.5", max_tokens=2).token_ids
        body = {"model": "a", "prompt": "x", "max_tokens": 2}
        assert http.post(COMPLETIONS, json=body).status_code == HTTPStatus.OK
        assert http.get("/readyz").status_code == HTTPStatus.OK
        eventually(lambda: _is_idle(http))


def _is_idle(http: httpx.Client) -> bool:
    seen = samples(http.get("/metrics").text)
    restarts = [name for name in seen if name.startswith("taskmix_engine_restarts_total")]
    return not any(seen[name] for name in (*HELD, *restarts))


def _calls(path: str) -> st.SearchStrategy[list[bytes]]:
    """The messages of a call: one, and now and then none or another one."""
    wire = wires(example(path))
    usual = wire.map(lambda one: [one])
    return st.integers(0, 15).flatmap(lambda drawn: usual if drawn else st.lists(wire, max_size=2))


def _sender(channel: grpc.Channel, path: str, keys: Mapping[str, str]) -> Attempt[list[bytes]]:
    call = channel.stream_stream(path)  # calls of every kind are alike on the wire

    def send(caller: str, wires: list[bytes]) -> tuple[str, str]:
        metadata = (("authorization", f"Bearer {keys[caller]}"),) if caller else ()
        answers = call(iter(wires), metadata=metadata, timeout=ANSWER_S)
        with suppress(grpc.RpcError):  # it is the call's status
            for _ in answers:
                pass
        code: StatusCode = answers.code()
        return code.name, "" if code in EXPECTED else str(answers.details())

    return send


def _poster(https: Mapping[str, httpx.Client], path: str) -> Attempt[bytes]:
    headers = {"content-type": "application/json"}

    def post(caller: str, body: bytes) -> tuple[str, str]:
        try:
            answer = https[caller].post(path, content=body, headers=headers, timeout=ANSWER_S)
        except httpx.HTTPError as error:
            return type(error).__name__, repr(error)
        return str(answer.status_code), _http_fault(answer)

    return post


def _http_fault(answer: httpx.Response) -> str:
    """An error of the server's own, or one that does not say what it is; a stream has its status
    before its errors."""
    if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return answer.text
    if answer.status_code >= HTTPStatus.BAD_REQUEST:
        return "" if '"message"' in answer.text else f"has no message: {answer.text}"
    events = (line.removeprefix("data: ") for line in answer.text.splitlines())
    errors = [json.loads(event)["error"] for event in events if event.startswith('{"error"')]
    ours = [error for error in errors if error["code"] >= HTTPStatus.INTERNAL_SERVER_ERROR]
    return f"has {ours} in its stream" if ours else ""
