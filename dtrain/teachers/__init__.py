"""Sources of teachers' outputs for the batches of training."""
