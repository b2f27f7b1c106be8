"""Estimates, made without a GPU, of what a recipe needs on GPUs: memory, communication, and which config to use."""
