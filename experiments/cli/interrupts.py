"""Ctrl-C, SIGTERM and SIGHUP end a program in order: the step under way is finished and saved."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAID = b"stopping: the update is being finished and saved; a second signal stops at once\n"
_GIVEN_UP = b"it takes longer: it is given up, and what was before it is saved\n"
_MOMENT = 0.05  # seconds; longer than a callback of the garbage collector


class Interrupted(KeyboardInterrupt):
    """The process was asked to end. `exit_status` is what a shell expects: 130, 143 or 129."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_status = 128 + signum


def _is_of_handler(error: BaseException) -> bool:
    """Whether an error was raised while a signal's was being handled."""
    context = error.__context__
    return context is not None and (isinstance(context, Interrupted) or _is_of_handler(context))


class GivenUp(Interrupted):
    """It was asked to end, and what was under way took too long to be waited for."""


class Interrupts:
    """While entered, the signals raise `Interrupted`: at once, or not at all if deferred.

    Where Python itself drops the exception, as in a callback of the garbage collector (JAX has one)
    or in `__del__`, it is raised again a moment later.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._pending = 0
        self._raised = 0
        self._said: list[bytes] = []
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook
        self._patience: float | None = None  # seconds; None: without a bound
        self._overdue = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # elsewhere none arrive
            # Under nohup a program outlives its terminal.
            outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            heard = [n for n in _SIGNALS if n != signal.SIGHUP or not outlives]
            self._before = {number: signal.signal(number, self._receive) for number in heard}
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._raise_again
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            sys.unraisablehook = self._unraisable
        if self._timer:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        overdue, self._overdue = self._overdue, False
        if overdue and self._patience is None:
            return  # what was under way ended in the same moment
        if self._deferring and not self._pending:
            self._pending = signum
            self._say(_SAID)
            if self._patience is not None:
                self._send(self._patience, signum, overdue=True)
            return
        self._raised = signum
        if overdue:
            self._say(_GIVEN_UP)
            raise GivenUp(signum)
        raise Interrupted(signum)  # not deferred; or asked twice: at once

    def _say(self, line: bytes) -> None:
        if line not in self._said:
            self._said.append(line)
            with contextlib.suppress(OSError):
                os.write(2, line)  # a buffered stream may be in the middle of a line

    def _send(self, seconds: float, signum: int, overdue: bool = False) -> None:
        """Sends a signal to the main thread, some time from now."""
        main: Any = threading.main_thread().ident

        def send() -> None:
            self._overdue = overdue
            signal.pthread_kill(main, signum)

        self._timer = threading.Timer(seconds, send)
        self._timer.daemon = True
        self._timer.start()

    def _raise_again(self, dropped: "sys.UnraisableHookArgs") -> None:
        """Python says what it drops. What a hook raises is dropped as well, so a timer does."""
        if isinstance(dropped.exc_value, Interrupted):
            self._send(_MOMENT, self._raised, isinstance(dropped.exc_value, GivenUp))
        else:
            self._unraisable(dropped)

    def check(self) -> None:
        """Raises what was raised before, if it was lost.

        Compiled code that calls Python may drop an exception: before Python 3.13 the C
        function that asks whether an attribute exists takes any exception for a no. This was seen
        while JAX traced.
        """
        if self._raised:
            raise Interrupted(self._raised)

    @contextlib.contextmanager
    def heard(self, is_handled: bool = False) -> Iterator[None]:
        """Inside, an error that follows one that was raised for a signal is taken for that one.

        What compiled code drops may leave it with a wrong answer, and that with another error.

        Args:
          is_handled: whether what is inside may handle signals itself: an error of such a handler
            is one.
        """
        try:
            yield
        except Exception as error:
            if not self._raised or (is_handled and _is_of_handler(error)):
                raise
            raise Interrupted(self._raised) from error

    @property
    def pending(self) -> int:
        """The signal that was deferred; 0 if none was."""
        return self._pending

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside what is deferred, for work that changes nothing: signals raise at once again."""
        deferring, self._deferring = self._deferring, False
        try:
            if self._pending:
                raise Interrupted(self._pending)
            with self.heard():
                yield
            self.check()
        except Interrupted:
            if deferring:  # what is saved now is saved by the first signal; a second stops it
                self._pending = self._pending or self._raised
                self._say(_SAID)
            raise
        finally:
            self._deferring = deferring

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal is `pending`; a second one raises at once."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextlib.contextmanager
    def bounded(self, seconds: float) -> Iterator[None]:
        """Inside what is deferred, where giving up loses nothing that was kept.

        Raises:
          GivenUp: so many seconds after the first signal, or from here on if that has come already.
        """
        self._patience = seconds
        if self._pending:  # since a moment ago
            self._send(seconds, self._pending, overdue=True)
        try:
            yield
            if self._raised:  # something swallowed it
                raise GivenUp(self._raised)
        finally:
            self._patience = None
            if self._timer:
                self._timer.cancel()
