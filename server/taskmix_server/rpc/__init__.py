"""The gRPC edge: converts messages, delegates to services, reports errors as statuses."""
