"""The vLLM plugin does nothing to an engine that was not given a bank."""

from types import SimpleNamespace
from typing import Any

import pytest

from taskmix_server.engine.config import CONFIG_KEY
from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.plugin import register
from taskmix_server.errors import UnsupportedModelError


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A runner's `load_lora_model` under the plugin; vLLM's own is replaced by its arguments."""
    mixin = compat.LoRAModelRunnerMixin
    monkeypatch.setattr(mixin, "load_lora_model", lambda runner, *arguments: arguments)
    register()
    register()
    return lambda config: mixin.load_lora_model(SimpleNamespace(), "model", config, "cpu")


@pytest.mark.parametrize("additional", [None, {}, {"another": {"bank": "x"}}], ids=str)
def test_inert_without_a_bank(load: Any, additional: Any) -> None:
    config = SimpleNamespace(additional_config=additional)
    assert load(config) == ("model", config, "cpu")


def test_a_bank_brings_our_manager_in(load: Any) -> None:
    latent = SimpleNamespace(use_mla=True)
    additional = {CONFIG_KEY: {"bank": "bank"}}
    with pytest.raises(UnsupportedModelError, match="multi-head latent attention"):
        load(SimpleNamespace(additional_config=additional, model_config=latent))
