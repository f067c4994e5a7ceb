"""Recipes that make the weights shipped with the package; not installed."""
