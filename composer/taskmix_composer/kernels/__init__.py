"""Operations on deltas as they are packed, each with an implementation for a kind of machine."""
