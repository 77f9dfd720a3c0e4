"""Task vectors as a library: banks of encoded deltas, mixes of them, and merged checkpoints."""
