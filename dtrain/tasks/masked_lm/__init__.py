"""Pre-training: masked words of plain text, and optionally whether one text follows another."""
