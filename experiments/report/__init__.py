"""Statistics and a page over any set of runs: `python -m experiments.report --help`."""
