"""Prediction: reading new text, choosing the model that answers it, and computing the answers."""
