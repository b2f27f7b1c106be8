"""Entities in text: one tag for each character."""
