"""Any number of labels a text, or a pair of texts."""
