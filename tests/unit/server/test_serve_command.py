"""`taskmix serve`: its flags, its configuration file, and where state goes by default."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from taskmix_server.cli.serve import serve
from taskmix_server.engine.config import EngineConfig
from taskmix_server.settings import default_cache, default_state


@pytest.fixture
def directories(tmp_path: Path) -> list[str]:
    for name in ("base", "bank"):
        (tmp_path / name).mkdir()
    return ["--base", str(tmp_path / "base"), "--bank", str(tmp_path / "bank")]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options as the command would receive them."""
    return serve.make_context("serve", arguments).params


def test_defaults(directories: list[str]) -> None:
    options = parsed(directories)
    assert (options["host"], options["grpc_port"], options["http_port"]) == (
        "127.0.0.1",
        50051,
        8000,
    )
    assert (options["device"], options["dtype"], options["max_num_seqs"]) == ("auto", "auto", 64)
    assert options["kv_cache_memory"] is None
    assert options["delta_cache_memory"] == 8 * 2**30


def test_a_file_sets_defaults_and_flags_win(directories: list[str], tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('grpc-port = 0\nmax_model_len = 128\nserved-model-name = "tiny"\n')
    options = parsed([*directories, "--max-model-len", "256", "--config", str(config)])
    assert (options["grpc_port"], options["max_model_len"]) == (0, 256)
    assert options["served_model_name"] == "tiny"


def test_a_file_may_name_the_directories(directories: list[str], tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text(f'base = "{directories[1]}"\nbank = "{directories[3]}"\n')
    assert parsed(["--config", str(config)])["bank"] == tmp_path / "bank"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1\n", "no option 'colour'"),
        ("config = 'x'\n", "no option 'config'"),
        ("not toml", "is not TOML"),
        ("grpc-port = 'x'\n", "not a valid integer"),
        ("dtype = 'int8'\n", "int8"),
    ],
)
def test_a_wrong_file_is_a_usage_error(
    directories: list[str], tmp_path: Path, text: str, message: str
) -> None:
    config = tmp_path / "server.toml"
    config.write_text(text)
    result = CliRunner().invoke(serve, [*directories, "--config", str(config)])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    "flags",
    [
        ["--grpc-port", "65536"],
        ["--http-port", "-1"],
        ["--dtype", "int8"],
        ["--max-num-seqs", "0"],
        ["--kv-cache-memory", "0"],
        ["--delta-cache-memory", "-1"],
        ["--unknown"],
        ["--tls-cert", __file__],
        ["--tls-key", __file__],
        ["--tls-cert", "missing", "--tls-key", "missing"],
    ],
    ids=str,
)
def test_wrong_flags_are_usage_errors(directories: list[str], flags: list[str]) -> None:
    assert CliRunner().invoke(serve, [*directories, *flags]).exit_code == 2


def test_state_and_cache_follow_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_state() == tmp_path / ".local" / "state" / "taskmix"
    assert default_cache() == tmp_path / ".cache" / "taskmix"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert default_state() == tmp_path / "s" / "taskmix"
    assert default_cache() == tmp_path / "c" / "taskmix"


def test_the_base_goes_by_its_directory(tmp_path: Path) -> None:
    assert EngineConfig(tmp_path / "x" / ".." / "tiny", tmp_path).model_name == "tiny"
    assert EngineConfig(tmp_path, tmp_path, served_model_name="prod").model_name == "prod"
