"""Experiments: which arm a subject gets, what happened to it, and what that tells."""
