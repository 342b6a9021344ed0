"""Value types, errors, expressions, and the Clock protocol. Pure: no IO, no clock and no randomness of its own."""
