"""Recipes, the steps they name, and the plan that a recipe and a source give."""
