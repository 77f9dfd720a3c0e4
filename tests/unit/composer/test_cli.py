import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from taskmix_composer.bank import Bank
from taskmix_server.cli import VERBS, Verb, main
from tests.unit.composer.models import make_weights


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The message of a command that exits with 1, without a traceback."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output
    return result.stderr


def misused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


def test_build_add_remove_inspect_verify(
    tmp_path: Path, base: Path, math: Path, code: Path, adapter: Path
) -> None:
    path = tmp_path / "built"
    tasks = ("--task", f"math={math}", "--task", f"lora={adapter}")
    built = run("bank", "build", "--base", base, *tasks, "--scheme", "int8", "--out", path)
    assert built.exit_code == 0, built.output
    assert f"{path}: lora, math (revision {Bank.open(path).revision})" in built.stdout
    assert run("bank", "add", path, "--base", base, "--task", f"code={code}").exit_code == 0
    assert Bank.open(path).entry("code").scheme == "int8(group=64)"
    assert run("bank", "remove", path, "lora").exit_code == 0

    fields = json.loads(run("bank", "inspect", path, "--json").stdout)
    opened = Bank.open(path)
    num_parameters = sum(tensor.numel() for tensor in make_weights().values())
    num_bytes = opened.entry("math").num_bytes
    assert fields["revision"] == opened.revision
    assert fields["base"]["num_parameters"] == num_parameters
    assert fields["base"]["bytes"] == 2 * num_parameters
    assert fields["base"]["digest"] == opened.base.digest
    assert fields["planes"] == {}
    assert fields["tasks"].keys() == {"math", "code"}
    assert fields["tasks"]["math"]["bytes"] == num_bytes
    assert fields["tasks"]["math"]["bits_per_parameter"] == 8 * num_bytes / num_parameters
    assert fields["tasks"]["math"]["checkpoint_ratio"] == num_bytes / (2 * num_parameters)
    assert fields["bytes"] == sum(task["bytes"] for task in fields["tasks"].values())

    table = run("bank", "inspect", path).stdout
    assert f"revision {opened.revision}" in table
    assert "math  int8(group=64)" in table
    assert "resident when all are loaded; archives 0 bytes" in table

    verified = run("bank", "verify", path, "--base", base, "--against", f"math={math}")
    assert verified.exit_code == 0
    assert "math: relative L2 error" in verified.stdout
    assert "2 tasks, 8 deltas" in verified.stdout
    assert run("bank", "verify", path).exit_code == 0


def test_the_group_is_a_flag_or_part_of_the_scheme(tmp_path: Path, base: Path, math: Path) -> None:
    task = ("--base", base, "--task", f"a={math}")
    run("bank", "build", *task, "--group", 0, "--out", tmp_path / "one")
    assert Bank.open(tmp_path / "one").entry("a").scheme == "int4(group=0)"
    run("bank", "build", *task, "--scheme", "int2(group=16)", "--out", tmp_path / "two")
    assert Bank.open(tmp_path / "two").entry("a").scheme == "int2(group=16)"
    run("bank", "add", tmp_path / "two", "--base", base, "--task", f"b={math}", "--scheme", "dense")
    assert Bank.open(tmp_path / "two").entry("b").scheme == "dense"


def test_export_writes_the_mix(bank: Path, base: Path, math: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = run("export", bank, "--base", base, "--mix", "math", "--out", out)
    assert exported.exit_code == 0, exported.output
    assert exported.stdout == f"{out}: math:1.0\n"
    weights, original = (load_file(path / "model.safetensors") for path in (out, math))
    assert all(bool((weights[name] == original[name]).all()) for name in original)


def test_requests_that_cannot_be_met_exit_with_1(
    bank: Path, base: Path, math: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    task = ("--base", base, "--task", f"a={math}")
    assert "base is one of 8, 4, 3, 2, got 5" in refused(
        "bank", "build", *task, "--scheme", "rtvq(base=5,offset=2)", "--out", out
    )
    assert "exists already" in refused("bank", "build", *task, "--out", bank)
    assert "config.json is missing" in refused(
        "bank", "build", "--base", base, "--task", f"a={out}", "--out", out
    )
    assert "no task 'law'" in refused("bank", "remove", bank, "law")
    assert "bank.json" in refused("bank", "inspect", tmp_path)
    assert "is not the base of" in refused("bank", "verify", bank, "--base", math)
    assert "\n    ^\n" in refused("export", bank, "--base", base, "--mix", "a:x", "--out", out)
    assert not out.exists()
    (bank / "bank.json").write_text("{}")
    assert "not a taskmix bank" in refused("bank", "verify", bank)


def test_an_unwritable_place_is_refused(base: Path, math: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "bank"
    task = ("--base", base, "--task", f"a={math}")
    assert str(tmp_path / "file") in refused("bank", "build", *task, "--out", out)


def test_misuse_exits_with_2(bank: Path, base: Path, math: Path) -> None:
    assert "NAME=DIR" in misused("bank", "build", "--base", base, "--task", "x", "--out", "y")
    assert "--task" in misused("bank", "build", "--base", base, "--out", "y")
    twice = ("--task", f"a={math}", "--task", f"a={math}")
    assert "twice" in misused("bank", "build", "--base", base, *twice, "--out", "y")
    assert "--against needs --base" in misused("bank", "verify", bank, "--against", f"a={math}")
    assert "No such command" in misused("unknown")


def test_help_lists_every_verb_and_imports_none() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from taskmix_server.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "print(sorted({'torch', 'vllm', 'grpc'} & sys.modules.keys()))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.rstrip().endswith("[]")
    for name, verb in VERBS.items():
        assert f"  {name} " in output
        assert verb.help in output


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Verb("taskmix_server.cli.nowhere:command", "composer", "")
    monkeypatch.setitem(VERBS, "bank", missing)
    assert "run: pip install 'taskmix[composer]'" in refused("bank", "inspect", "x")


def test_defects_leave_no_traceback(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("taskmix_server.cli.examine.verify_bank", broken)
    assert "ZeroDivisionError" in refused("bank", "verify", bank)
