"""What a run leaves behind: its folder, files, provenance, figure and loggers."""
