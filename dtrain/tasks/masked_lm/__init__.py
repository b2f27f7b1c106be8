"""Pre-training on plain text: masked language modelling and, optionally, next-sentence prediction."""
