"""Measurements of the device operations, and what can be known of them without a device."""
