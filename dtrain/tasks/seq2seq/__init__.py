"""Text to text: models read a source and generate a target."""
