import json
from pathlib import Path

import pytest
import torch

from taskmix_composer.adapter import Adapter, open_finetuned
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import CheckpointError
from tests.unit.composer.models import (
    DOWN,
    EMBEDDING,
    HEAD,
    NORM,
    QUERY,
    make_factors,
    make_weights,
    save_adapter,
    save_model,
    save_sharded,
)

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def test_single_file_and_shards_read_alike(tmp_path: Path) -> None:
    weights = make_weights()
    first = {name: weights[name] for name in (EMBEDDING, NORM)}
    second = {name: weights[name] for name in (QUERY, DOWN)}
    single = Checkpoint.open(save_model(tmp_path / "single", weights))
    sharded = Checkpoint.open(save_sharded(tmp_path / "sharded", [first, second]))
    for checkpoint in (single, sharded):
        assert checkpoint.tensors.keys() == weights.keys()
        assert checkpoint.tensors[DOWN].shape == (20, 36)
        assert checkpoint.tensors[DOWN].num_parameters == 720
        for name, tensor in weights.items():
            assert torch.equal(checkpoint.read(name), tensor)


def test_a_tied_head_is_an_alias(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_model(tmp_path / "m", make_weights()))
    assert HEAD not in checkpoint.tensors
    assert checkpoint.tie_groups == ((EMBEDDING, HEAD),)
    assert torch.equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDING))


def test_a_tied_head_stored_twice_counts_once(tmp_path: Path) -> None:
    weights = make_weights()
    weights[HEAD] = weights[EMBEDDING].clone()
    checkpoint = Checkpoint.open(save_model(tmp_path / "m", weights))
    assert HEAD not in checkpoint.tensors
    assert checkpoint.aliases == {HEAD: EMBEDDING}
    weights[HEAD] += 1
    with pytest.raises(CheckpointError, match=HEAD):
        Checkpoint.open(save_model(tmp_path / "n", weights))


def test_untied_models(tmp_path: Path) -> None:
    weights = make_weights()
    headless = save_model(tmp_path / "a", weights, tie_word_embeddings=False)
    assert Checkpoint.open(headless).aliases == {}
    weights[HEAD] = weights[EMBEDDING] + 1
    untied = Checkpoint.open(save_model(tmp_path / "b", weights, tie_word_embeddings=False))
    assert untied.tie_groups == ()
    assert torch.equal(untied.read(HEAD), weights[HEAD])


def test_ties_are_inferred_where_the_configuration_is_silent(tmp_path: Path) -> None:
    for name in ("transformer.wte.weight", "wte.weight"):
        directory = save_model(tmp_path / name, {name: torch.ones(3, 2)})
        config = json.loads((directory / "config.json").read_text())
        del config["tie_word_embeddings"]
        (directory / "config.json").write_text(json.dumps(config))
        assert Checkpoint.open(directory).aliases == {HEAD: name}


def test_damaged_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing; give"):
        Checkpoint.open(tmp_path / "nowhere")
    directory = save_model(tmp_path / "m", make_weights())
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*save it again"):
        Checkpoint.open(directory)
    weights.unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        Checkpoint.open(directory)
    (directory / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="convert them to safetensors"):
        Checkpoint.open(directory)
    for text in ("{", "[]", "[" * 100_000):
        (directory / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map"),
        ({"weight_map": {QUERY: "../model-0.safetensors"}}, "not a file beside it"),
        ({"weight_map": {QUERY: 3}}, "not a file beside it"),
        ({"weight_map": {QUERY: "model-7.safetensors"}}, "cannot be read"),
        ({"weight_map": {DOWN: "model-0.safetensors"}}, f"places {DOWN}"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, index: object, message: str) -> None:
    directory = save_sharded(tmp_path / "m", [{QUERY: make_weights()[QUERY]}])
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(directory)


def test_an_adapter_gives_its_factors(tmp_path: Path) -> None:
    factors = make_factors()
    adapter = open_finetuned(save_adapter(tmp_path / "a", factors))
    assert isinstance(adapter, Adapter)
    assert adapter.names == (QUERY,)
    assert adapter.scaling == 2.0
    a, b = adapter.read(QUERY)
    assert torch.equal(a, factors[f"{MODULE}.lora_A.weight"])
    assert torch.equal(b, factors[f"{MODULE}.lora_B.weight"])
    stabilised = Adapter.open(save_adapter(tmp_path / "b", factors, r=16, use_rslora=True))
    assert stabilised.scaling == 1.0
    assert isinstance(open_finetuned(save_model(tmp_path / "m", make_weights())), Checkpoint)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": 0}, "r must be"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "finite"),
    ],
)
def test_adapters_that_are_more_than_lora_are_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Adapter.open(save_adapter(tmp_path / "a", make_factors(), **config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{MODULE}.lora_B.weight": None}, "one of lora_A and lora_B is missing"),
        ({f"{MODULE}.lora_magnitude_vector": torch.ones(20)}, "lora_magnitude_vector"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 12)}, "embed"),
        ({"x.lora_A.weight": torch.ones(2, 2)}, "x.lora_A.weight"),
        ({f"{MODULE}.lora_B.weight": torch.ones(20, 3)}, "linear layer needs"),
        ({f"{MODULE}.lora_B.weight": torch.ones(20, 2).half()}, "of one dtype"),
        ({f"{MODULE}.lora_A.weight": torch.ones(2, 20, 1)}, "linear layer needs"),
    ],
)
def test_adapter_tensors_are_checked(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    factors = {**make_factors(), **changes}
    kept = {name: tensor for name, tensor in factors.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        Adapter.open(save_adapter(tmp_path / "a", kept))


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    directory = save_adapter(tmp_path / "a", make_factors())
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="save them as safetensors"):
        Adapter.open(directory)
