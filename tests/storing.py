"""Programs that are kept on disk, in tests."""

import dataclasses
import threading

import numpy as np

from rgpo_jax.config import ConfigError


def wait_until_kept():
    """Waits for the threads that write what was compiled."""
    for thread in threading.enumerate():
        if thread.name == "keeping":
            thread.join(60)


def with_other_numbers(config, unread=()):
    """The config with every number changed that programs are to take as an argument.

    Those may stay as they are that it refuses to change because nothing reads them.
    """
    for name, value in config.traced().items():
        for other in (0.5 * value, 0.3, 1.5 * value + 0.1):
            try:
                changed = dataclasses.replace(config, **{name: other})
            except ConfigError:
                continue
            if other != value:
                config = changed
                break
        else:
            assert name in unread, f"no other number was found for {name}"
    return config


def assert_same_programs(ours, theirs):
    """That jaxprs are the same, and what is written into them."""
    for one, other in zip(ours, theirs, strict=True):
        assert str(one) == str(other)
        for a, b in zip(one.consts, other.consts, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
