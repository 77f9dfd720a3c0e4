"""Adapters against PEFT's own merge, on a model and adapters that the libraries wrote."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from taskmix_composer.build import build_bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.export import export_checkpoint
from taskmix_composer.forms import Forms
from taskmix_composer.mix import Mix

# Both sides multiply and add in float32, in different orders.
TOLERANCE = 1e-6


def make_model(*, is_tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=is_tied,
    )
    return LlamaForCausalLM(config).float()


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("use_rslora", [False, True], ids=["plain", "rank-stabilised"])
def test_an_exported_adapter_equals_its_merged_model(
    tmp_path: Path, is_tied: bool, use_rslora: bool
) -> None:
    base, tuned = tmp_path / "base", tmp_path / "adapter"
    model = make_model(is_tied=is_tied)
    model.save_pretrained(base)
    settings = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=use_rslora
    )
    adapted = get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tuned)
    merged = adapted.merge_and_unload().state_dict()

    bank = build_bank(base, {"lora": tuned}, Forms(Scheme("int4")), tmp_path / "bank")
    assert len(bank.entry("lora").tensors) == 4
    export_checkpoint(bank, Checkpoint.open(base), Mix.parse("lora"), tmp_path / "out")
    exported = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, tensor in exported.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=TOLERANCE, atol=TOLERANCE)
