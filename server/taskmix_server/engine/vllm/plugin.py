"""The `vllm.general_plugins` entry point: our manager in place of vLLM's LoRA manager.

vLLM calls `register` in every process, more than once. Without a `taskmix` key in
`additional_config` a patched vLLM behaves like a stock one.
"""

from typing import TYPE_CHECKING, Any

from taskmix_server.engine.config import CONFIG_KEY
from taskmix_server.engine.vllm.process import guard_engine_process

if TYPE_CHECKING:
    import torch
    from torch import nn


def register() -> None:
    """Make vLLM's model runners ask `MixManager` for their adapters."""
    try:
        from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin as Mixin
    except ImportError:
        return  # not a vLLM that taskmix knows: leave it alone
    guard_engine_process()
    stock = Mixin.load_lora_model
    if getattr(stock, "is_taskmix", False):
        return

    def load_lora_model(
        self: Any, model: "nn.Module", vllm_config: Any, device: "torch.device"
    ) -> "nn.Module":
        settings = (vllm_config.additional_config or {}).get(CONFIG_KEY)
        if settings is None:
            loaded: nn.Module = stock(self, model, vllm_config, device)
            return loaded
        from taskmix_server.engine.vllm import compat
        from taskmix_server.engine.vllm.manager import MixManager

        compat.check()
        self.lora_manager = MixManager.attach(model, vllm_config, device, settings)
        return model

    load_lora_model.is_taskmix = True  # type: ignore[attr-defined]
    Mixin.load_lora_model = load_lora_model
