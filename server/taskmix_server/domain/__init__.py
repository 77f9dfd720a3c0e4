"""Frozen values that every part of the server speaks in; no transport, no engine."""
