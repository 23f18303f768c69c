"""Exit statuses, beside 0 and those of a signal."""

EXIT_BAD_INPUT = 2  # the user should type something else
EXIT_BROKEN = 3  # parameters became NaN or infinite, or a reward is none
EXIT_NOT_KEPT = 4  # a full disk, or one that fails
EXIT_LOST = 5  # Ray gave a task up
