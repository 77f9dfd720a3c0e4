"""Simulated experiments: how often the statistics err, and how soon they find what is there."""
