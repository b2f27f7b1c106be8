"""Entities in text: a tag a character."""
