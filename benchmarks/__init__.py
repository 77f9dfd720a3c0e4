"""Measurements: seeded, several servers compared in one run, one JSON line each in results/."""
