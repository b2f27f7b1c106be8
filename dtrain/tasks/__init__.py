"""Kinds of task. Each subpackage holds everything that one kind decides; `registry.py` maps `data.task` to them."""
