"""The HTTP edge: vLLM's OpenAI app behind our resolution of what `model` means."""
