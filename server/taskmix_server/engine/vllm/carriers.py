"""How a worker, which sees no more of a request than its LoRA, knows whom nobody waits for."""

from taskmix_server.engine.vllm.compat import LoRARequest

_SHADOW = "shadow:"


def as_shadow(carrier: LoRARequest) -> LoRARequest:
    """The same mix, for a request that nobody waits for."""
    return LoRARequest(f"{_SHADOW}{carrier.lora_name}", carrier.lora_int_id, carrier.lora_path)


def is_shadow(carrier: LoRARequest) -> bool:
    return bool(carrier.lora_name.startswith(_SHADOW))
