"""The prediction log's process side: a keeper of its own that encodes closed segments, ships them and lets old ones go."""
