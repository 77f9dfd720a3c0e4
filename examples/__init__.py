"""Real weights and real tasks: what `make demo` trains, serves and scores."""
