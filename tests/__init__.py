"""Tests, by how much they start: unit, oracle, integration, e2e, fuzz."""
