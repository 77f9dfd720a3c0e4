"""What runs tokens. The rest of the server sees only `engine.base.Engine`."""
