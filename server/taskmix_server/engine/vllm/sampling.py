"""Steps that sample at once: one message to the worker and one back, where vLLM has two of each."""

from functools import wraps
from typing import Any


def sample_at_once(runner: Any) -> None:
    """Have a model runner answer `execute_model` with the tokens that it samples.

    vLLM's scheduler process asks for them in a second message, which may bring a grammar's masks;
    where no request has a grammar it takes what comes with the first answer. Not for asynchronous
    scheduling, whose scheduler sends the second message in any case.
    """
    stock = runner.execute_model

    @wraps(stock)
    def execute_model(scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        output = stock(scheduler_output, intermediate_tensors)
        if output is None and not scheduler_output.has_structured_output_requests:
            return runner.sample_tokens(None)
        return output

    runner.execute_model = execute_model
