"""Recipes: YAML with places, checked whole, expanded into runs."""
