"""Speed: the parts of a step, whole runs, peers, and accelerators."""
