"""vLLM as the engine: the only package that imports torch or vllm."""
