"""Names of metrics, spans and log fields, once; what a request leaves behind."""
