"""A number a text, or a pair of texts."""
