"""The wire contract: protocol buffer messages and gRPC stubs, by version."""
