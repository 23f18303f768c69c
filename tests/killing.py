"""Programs that are gone in the middle, as by kill -9, but in the tests' own process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rgpo_jax.checkpoint import Checkpoints


class Killed(BaseException):
    """What no handler of ours knows: it stands for kill -9."""


@contextmanager
def killed_in(owner: Any, name: str) -> Iterator[None]:
    """What runs within is gone where it calls `owner.name`."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, die)
        yield


@contextmanager
def killed_at_save(saves: int, *, before: bool = False) -> Iterator[None]:
    """What runs within is gone once it has made so many checkpoints, or before it makes one more.

    Between the two it may have evaluated and logged.
    """
    save, made = Checkpoints.save, list[Any]()

    def dying(self: Checkpoints, *args: Any) -> None:
        if before and len(made) == saves:
            raise Killed
        save(self, *args)
        made.append(self)
        if not before and len(made) == saves:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", dying)
        yield
