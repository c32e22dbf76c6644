"""Recipes and cluster files: whole runs as YAML, found by importlib.resources."""
