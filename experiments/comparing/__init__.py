"""What comparisons share: rows, the exact frontier, intervals, timing in turn, a page's style."""
