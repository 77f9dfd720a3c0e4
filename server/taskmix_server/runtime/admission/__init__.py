"""Who comes into the engine, when, and what it is charged."""
