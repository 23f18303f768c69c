"""Ctrl-C and SIGTERM are heard, wherever Python was when they came."""

import contextlib
import gc
import os
import signal
import sys
import time

import pytest

from experiments.cli import frame
from experiments.cli.interrupts import GivenUp, Interrupted, Interrupts


@pytest.mark.usefixtures("terminal_may_hang_up")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_raises_with_its_exit_status(number):
    with Interrupts(), pytest.raises(Interrupted) as interrupted:
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert interrupted.value.exit_status == 128 + number


def test_a_signal_in_a_callback_of_the_garbage_collector_is_raised_again(capsys):
    """JAX has such a callback; Python drops what is raised in it."""

    def collected(phase, info):
        gc.callbacks.remove(collected)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    began = time.monotonic()
    with Interrupts(), pytest.raises(Interrupted):
        gc.callbacks.append(collected)
        gc.collect()
        time.sleep(5)
    assert time.monotonic() - began < 4
    assert capsys.readouterr().err == ""


def test_what_else_python_drops_goes_to_the_hook_before(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("dropped")

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(str(what.exc_value)))
    with Interrupts():
        Broken()
        gc.collect()
    assert dropped == ["dropped"]


def test_under_nohup_the_end_of_a_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_inside_what_is_deferred_a_signal_may_raise_at_once():
    with Interrupts() as interrupts, interrupts.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.pending == signal.SIGTERM
        with pytest.raises(Interrupted), interrupts.at_once():
            raise AssertionError("it was pending")


def test_a_stop_in_an_evaluation_counts_as_the_first_signal(capfd):
    with Interrupts() as interrupts, pytest.raises(Interrupted), interrupts.deferred():
        with pytest.raises(Interrupted), interrupts.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert "a second signal stops at once" in capfd.readouterr().err
        assert interrupts.pending == signal.SIGTERM  # and now it is being saved
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_a_signal_that_something_swallowed_in_an_evaluation_is_raised_at_its_end():
    with Interrupts() as interrupts, interrupts.deferred(), pytest.raises(Interrupted):
        with interrupts.at_once(), contextlib.suppress(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        pytest.fail("it was lost")


def test_an_error_that_a_swallowed_signal_led_to_is_that_signal_and_another_is_not(capsys):
    def wrong_answer(args, interrupts):
        if args:
            with contextlib.suppress(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        raise AttributeError("no such attribute")

    assert frame.run(wrong_answer, ["x"], "stopped") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped\n"
    with pytest.raises(AttributeError):
        frame.run(wrong_answer, [])


def test_an_error_of_who_handles_a_signal_is_an_error():
    def save_badly(args, interrupts):
        try:
            with interrupts.deferred(), interrupts.at_once():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        except Interrupted:
            raise ValueError("cannot be saved") from None

    with pytest.raises(ValueError, match="cannot be saved"):
        frame.run(save_badly, [])


def test_an_error_in_an_evaluation_that_a_swallowed_signal_led_to_is_that_signal(capfd):
    with Interrupts() as interrupts, interrupts.deferred():
        with pytest.raises(Interrupted), interrupts.at_once():
            with contextlib.suppress(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            raise AttributeError("no such attribute")
        assert interrupts.pending == signal.SIGTERM


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with Interrupts():
        assert sys.unraisablehook is not before[1]
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before


def test_a_deferred_signal_is_pending_and_a_second_one_raises():
    with Interrupts() as interrupts, pytest.raises(Interrupted), interrupts.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert interrupts.pending == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_what_takes_too_long_after_a_signal_is_given_up(capfd):
    began = time.monotonic()
    with Interrupts() as interrupts, interrupts.deferred():
        with pytest.raises(GivenUp) as given_up, interrupts.bounded(0.2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert given_up.value.exit_status == 128 + signal.SIGTERM
        assert interrupts.pending == signal.SIGTERM
    assert time.monotonic() - began < 4
    assert "it is given up" in capfd.readouterr().err


def test_a_signal_that_came_just_before_is_waited_for_no_longer():
    began = time.monotonic()
    with Interrupts() as interrupts, interrupts.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(GivenUp), interrupts.bounded(0.2):
            time.sleep(5)
    assert time.monotonic() - began < 4


def test_what_was_given_up_in_a_callback_of_the_garbage_collector_is_given_up_all_the_same():
    def collected(phase, info):
        gc.callbacks.remove(collected)
        time.sleep(0.5)  # the wait ends in here, and Python drops what is raised

    with (
        Interrupts() as interrupts,
        interrupts.deferred(),
        pytest.raises(GivenUp),
        interrupts.bounded(0.1),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        gc.callbacks.append(collected)
        gc.collect()
        time.sleep(5)


def test_what_ends_in_time_after_a_signal_is_not_given_up():
    with Interrupts() as interrupts, interrupts.deferred():
        with interrupts.bounded(0.3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        time.sleep(0.5)
        assert interrupts.pending == signal.SIGTERM


def test_a_second_signal_does_not_wait_and_is_not_taken_for_a_wait_that_was_too_long():
    with (
        Interrupts() as interrupts,
        pytest.raises(Interrupted) as stopped,
        interrupts.deferred(),
        interrupts.bounded(60),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert not isinstance(stopped.value, GivenUp)
