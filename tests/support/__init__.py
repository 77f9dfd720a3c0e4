"""What several test folders make: tiny models, banks of them, served processes."""
