"""State behind the services: which tasks are held, which mixes are ready, which have names."""
