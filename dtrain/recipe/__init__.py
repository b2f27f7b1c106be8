"""Recipes: one YAML file with a closed schema says what a run does."""

from dtrain.recipe.load import copy_recipe, dump_recipe, find_recipe, load_recipe, shipped_recipes, write_new
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Student, Teacher

__all__ = [
    "Recipe",
    "Student",
    "Teacher",
    "copy_recipe",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "shipped_recipes",
    "write_new",
]
