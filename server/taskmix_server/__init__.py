"""The taskmix server: one process that runs vLLM under mixes, behind gRPC and HTTP."""
