"""Aligns language models, from an exact bandit to a model that speaks."""
