"""The package's own architectures as sections of a recipe: each file registers the architectures that it defines."""
