"""The admin calls, over both clients."""

from typing import Any

import pytest

from taskmix.v1 import bank_pb2 as pb
from taskmix_client import NamedMix, Task
from tests.unit.client.scripted import Script

LAW = pb.TaskInfo(
    name="law", scheme="int4", bytes=9, digest="d", state=pb.TASK_STATE_RESIDENT, references=2
)
LAW_READ = Task("law", "int4", 9, "d", "resident", 2)
PROD = pb.NamedMix(name="prod", mix_json="{}", mix_digest="m")
PROD_READ = NamedMix("prod", "{}", "m")


@pytest.mark.parametrize(
    ("call", "method", "response", "sent", "result"),
    [
        (
            lambda c: c.tasks(),
            "ListTasks",
            pb.ListTasksResponse(tasks=[LAW]),
            pb.ListTasksRequest(),
            (LAW_READ,),
        ),
        (
            lambda c: c.load_task("law"),
            "LoadTask",
            pb.LoadTaskResponse(task=LAW),
            pb.LoadTaskRequest(name="law"),
            LAW_READ,
        ),
        (
            lambda c: c.unload_task("law"),
            "UnloadTask",
            pb.UnloadTaskResponse(task=LAW),
            pb.UnloadTaskRequest(name="law"),
            LAW_READ,
        ),
        (
            lambda c: c.register_mix("prod", "law:0.5"),
            "RegisterMix",
            pb.RegisterMixResponse(mix=PROD),
            pb.RegisterMixRequest(name="prod", mix={"expression": "law:0.5"}),
            PROD_READ,
        ),
        (
            lambda c: c.mixes(),
            "ListMixes",
            pb.ListMixesResponse(mixes=[PROD]),
            pb.ListMixesRequest(),
            (PROD_READ,),
        ),
        (
            lambda c: c.delete_mix("prod"),
            "DeleteMix",
            pb.DeleteMixResponse(),
            pb.DeleteMixRequest(name="prod"),
            None,
        ),
    ],
    ids=["tasks", "load", "unload", "register", "mixes", "delete"],
)
def test_calls(
    client: Any, script: Script, call: Any, method: str, response: Any, sent: Any, result: Any
) -> None:
    script.answer(method, lambda request, context: response)
    assert call(client) == result
    assert script.requests == [sent]


def test_every_task_state_has_a_word(client: Any, script: Script) -> None:
    states = [value for value in pb.TaskState.values() if value != pb.TASK_STATE_UNSPECIFIED]
    infos = [pb.TaskInfo(state=state) for state in (*states, 99)]
    script.answer("ListTasks", lambda request, context: pb.ListTasksResponse(tasks=infos))
    assert [task.state for task in client.tasks()] == [
        "on disk",
        "loading",
        "resident",
        "unloading",
        "offloaded",
        "unknown",
    ]
