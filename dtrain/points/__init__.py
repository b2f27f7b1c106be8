"""What a student knows of a text, token by token: how it is measured, and counted over its training."""
