"""Answers of trained models to new text: which texts, what the model says, and how it is written down."""
