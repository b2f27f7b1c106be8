"""One label a text, or a pair of texts."""
