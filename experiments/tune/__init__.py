"""Searches settings of an agent: `python -m experiments.tune --help`."""
