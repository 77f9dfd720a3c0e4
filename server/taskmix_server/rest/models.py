"""vLLM's model names, replaced by the variant that this request was resolved to.

The edge resolves a request before vLLM sees it and leaves the result in a context variable;
vLLM's serving classes then find exactly one model: the one that the caller named.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels

from taskmix_server.engine.vllm.compat import LoRARequest
from taskmix_server.runtime.admission.tickets import Ticket
from taskmix_server.telemetry.requests import RequestRecord


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What the caller wrote as `model`, the LoRA request that carries its variant, the record of
    the request, and the ticket with which it was let in."""

    name: str
    lora_request: LoRARequest | None
    record: RequestRecord
    ticket: Ticket


RESOLVED: ContextVar[ResolvedModel] = ContextVar("taskmix_resolved_model")


class ResolvedModels(OpenAIServingModels):
    """Answers vLLM's questions about `model` from the request being served."""

    @classmethod
    def take_over(cls, models: OpenAIServingModels) -> None:
        """Turn vLLM's registry into this one in place: its serving classes keep references."""
        models.__dict__.pop("lora_requests")
        models.__class__ = cls

    @property
    def lora_requests(self) -> dict[str, LoRARequest]:
        resolved = RESOLVED.get()
        return {resolved.name: resolved.lora_request} if resolved.lora_request else {}

    def is_base_model(self, model_name: str) -> bool:
        resolved = RESOLVED.get()
        return resolved.lora_request is None and model_name == resolved.name

    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        return RESOLVED.get().name

    async def resolve_lora(self, lora_name: str) -> Any:
        raise AssertionError("the edge resolves every name before vLLM sees it")
