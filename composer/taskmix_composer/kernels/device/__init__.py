"""What the device operations read: packed deltas in slots, and which rows want which of them."""
