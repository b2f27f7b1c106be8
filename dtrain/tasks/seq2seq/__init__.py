"""A text for each text: what is read is the source, what is written the target."""
