"""Teachers as training sees them: where their outputs for a batch come from."""
