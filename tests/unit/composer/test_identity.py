from pathlib import Path

import pytest
import torch

from taskmix_composer import identity
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.identity import (
    DigestCache,
    config_differences,
    digest_reader,
    functional_config,
)
from taskmix_composer.tensorfile import TensorFile, tensor_digest
from tests.unit.composer.models import QUERY, make_weights, save_model

OLD = {"model_type": "llama", "rope_theta": 1e4, "rope_scaling": None, "rms_norm_eps": 1e-5}
NEW = {
    "model_type": "llama",
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    "rms_norm_eps": 1e-5,
    "head_dim": 64,
    "transformers_version": "5",
}


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    return config_differences(functional_config(one), functional_config(other))


def test_spellings_of_one_configuration_agree() -> None:
    assert differences(OLD, NEW) == []
    assert differences({**OLD, "use_cache": True, "dtype": "float32"}, OLD) == []
    scaled = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newly = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}
    assert differences(scaled, newly) == []


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"rms_norm_eps": 1e-6}, ["rms_norm_eps"]),
        ({"rope_theta": 5e5}, ["rope.rope_theta"]),
        ({"rope_scaling": {"factor": 2.0}}, ["rope.factor"]),
        ({"model_type": "qwen2"}, ["model_type"]),
    ],
)
def test_functional_changes_are_named(change: dict[str, object], keys: list[str]) -> None:
    assert differences(OLD, {**OLD, **change}) == keys
    assert differences(NEW, {**OLD, **change}) == keys


def test_nested_configurations_are_compared() -> None:
    inner = {"text_config": {**OLD, "dtype": "float32"}}
    assert differences(inner, {"text_config": NEW}) == []
    changed = {"text_config": {**OLD, "rope_theta": 2.0}}
    assert differences(inner, changed) == ["text_config.rope.rope_theta"]


def test_digests_are_computed_once_per_state_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(save_model(tmp_path / "m", make_weights()))
    file = checkpoint.files[QUERY]
    path = tmp_path / "state" / "digests.json"
    expected = {name: tensor_digest(tensor) for name, tensor in make_weights().items()}
    assert DigestCache(path).digests(file) == expected
    with monkeypatch.context() as patch:
        patch.delattr(identity, "tensor_digest")
        assert DigestCache(path).digests(file) == expected
        assert digest_reader(checkpoint, DigestCache(path))(QUERY) == expected[QUERY]
    assert digest_reader(checkpoint)(QUERY) == expected[QUERY]
    changed = {**make_weights(), QUERY: torch.zeros(20, 20).bfloat16()}
    save_model(tmp_path / "n", changed)
    (tmp_path / "n" / "model.safetensors").replace(file.path)
    assert DigestCache(path).digests(TensorFile(file.path))[QUERY] != expected[QUERY]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', '{"x": {"y": 3}}', "[" * 100_000])
def test_a_damaged_cache_is_replaced(tmp_path: Path, content: str) -> None:
    checkpoint = Checkpoint.open(save_model(tmp_path / "m", make_weights()))
    path = tmp_path / "digests.json"
    path.write_text(content)
    expected = DigestCache(path).digests(checkpoint.files[QUERY])
    assert expected[QUERY] == tensor_digest(make_weights()[QUERY])
    assert path.read_text() != content
    assert [entry.name for entry in tmp_path.iterdir() if "digests" in entry.name] == [path.name]
