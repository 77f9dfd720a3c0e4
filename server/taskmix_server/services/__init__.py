"""Use cases on domain values; no transport."""
