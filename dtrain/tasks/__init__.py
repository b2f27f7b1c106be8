"""Kinds of task: each folder holds all that one kind decides. `registry.py` finds the one of a recipe's data."""
