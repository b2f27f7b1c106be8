"""Knowledge points: which tokens of a text a student uses, measured and counted over its training."""
