"""Search: from a target that the user names to a recipe, by sensitivities, a solver and a few measured trials."""
