"""Names of metrics and log fields, once."""
