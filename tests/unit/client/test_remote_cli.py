"""The commands that talk to a server: what they send, print and exit with."""

from collections.abc import Callable

import grpc
import pytest
from click.testing import CliRunner, Result

from taskmix.v1 import bank_pb2, inference_pb2
from taskmix_server.cli import remote
from tests.unit.client.scripted import Script

COMMANDS = {"generate": remote.generate, "tasks": remote.tasks, "mixes": remote.mixes}
Run = Callable[..., Result]


@pytest.fixture
def run(script: Script) -> Run:
    def invoke(verb: str, *arguments: str, **environment: str) -> Result:
        environment.setdefault("TASKMIX_SERVER", script.target)
        return CliRunner().invoke(COMMANDS[verb], arguments, env=environment)

    return invoke


def _answer(request: object, context: grpc.ServicerContext) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(completions=[inference_pb2.Completion(text=" four")])


def test_generate_prints_the_text(run: Run, script: Script) -> None:
    script.answer("Generate", _answer)
    result = run("generate", "--mix", "a:0.7+b:0.3", "--max-tokens", "4", "2 + 2 =")
    assert (result.exit_code, result.stdout) == (0, " four\n")
    assert script.requests == [
        inference_pb2.GenerateRequest(
            prompt="2 + 2 =",
            mix={"expression": "a:0.7+b:0.3"},
            sampling=inference_pb2.Sampling(max_tokens=4),
        )
    ]


def test_generate_streams(run: Run, script: Script) -> None:
    pieces = [
        inference_pb2.StreamGenerateResponse(completions=[inference_pb2.Completion(text=text)])
        for text in (" fo", "ur")
    ]
    script.answer("StreamGenerate", lambda request, context: iter(pieces))
    result = run("generate", "--stream", "--mix-name", "prod", "--temperature", "0", "2 + 2 =")
    assert (result.exit_code, result.stdout) == (0, " four\n")
    assert script.requests[0].request.mix_name == "prod"
    assert script.requests[0].request.sampling.HasField("temperature")


def test_generate_under_an_experiment(run: Run, script: Script) -> None:
    script.answer("Generate", _answer)
    assert run("generate", "--experiment", "e", "--subject", "s", "p").exit_code == 0
    assert script.requests[0].experiment == inference_pb2.ExperimentRef(name="e", subject="s")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mix", "a", "--mix-name", "b"], "--mix and --mix-name exclude each other"),
        (["--experiment", "e"], "--experiment and --subject go together"),
        (["--max-tokens", "0"], "--max-tokens"),
    ],
)
def test_contradictions_are_usage_errors(run: Run, flags: list[str], message: str) -> None:
    result = run("generate", *flags, "p")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_refusal_is_a_message_and_status_1(run: Run, script: Script) -> None:
    def refuse(request: object, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.NOT_FOUND, "no task 'lew'")

    script.answer("LoadTask", refuse)
    result = run("tasks", "load", "lew")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: no task 'lew'\n")


def test_server_and_key_are_flags_too(run: Run, script: Script) -> None:
    script.answer("Generate", _answer)
    flags = ["--server", script.target, "--api-key", "from-flag"]
    assert run("generate", *flags, "p", TASKMIX_SERVER="127.0.0.1:1").exit_code == 0
    assert run("generate", "p", TASKMIX_API_KEY="from-env").exit_code == 0
    keys = [headers["authorization"] for headers in script.headers]
    assert keys == ["Bearer from-flag", "Bearer from-env"]


LAW = bank_pb2.TaskInfo(
    name="law", scheme="int4", bytes=1234, state=bank_pb2.TASK_STATE_RESIDENT, references=2
)
TASK_TABLE = "task  scheme  bytes  state     in use by\nlaw   int4    1234   resident  2\n"
PROD = bank_pb2.NamedMix(name="prod", mix_json='{"terms":[]}', mix_digest="0123456789abcdef01")
MIX_TABLE = 'mix   digest            terms\nprod  0123456789abcdef  {"terms":[]}\n'


@pytest.mark.parametrize(
    ("arguments", "method", "response", "printed"),
    [
        (["tasks", "list"], "ListTasks", bank_pb2.ListTasksResponse(tasks=[LAW]), TASK_TABLE),
        (["tasks", "load", "law"], "LoadTask", bank_pb2.LoadTaskResponse(task=LAW), TASK_TABLE),
        (
            ["tasks", "unload", "law"],
            "UnloadTask",
            bank_pb2.UnloadTaskResponse(task=LAW),
            TASK_TABLE,
        ),
        (["mixes", "list"], "ListMixes", bank_pb2.ListMixesResponse(mixes=[PROD]), MIX_TABLE),
        (
            ["mixes", "register", "prod", "base"],
            "RegisterMix",
            bank_pb2.RegisterMixResponse(mix=PROD),
            MIX_TABLE,
        ),
        (
            ["mixes", "delete", "prod"],
            "DeleteMix",
            bank_pb2.DeleteMixResponse(),
            "deleted prod\n",
        ),
        (
            ["tasks", "list"],
            "ListTasks",
            bank_pb2.ListTasksResponse(),
            "task  scheme  bytes  state  in use by\n",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_admin_verbs_print_tables(
    run: Run, script: Script, arguments: list[str], method: str, response: object, printed: str
) -> None:
    script.answer(method, lambda request, context: response)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (0, printed)
