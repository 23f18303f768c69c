"""What comparisons share: rows, the exact frontier, intervals and tests, the style of a page."""
