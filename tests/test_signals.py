"""Signals: noted by a loop that then saves and stops."""

import os
import signal
from pathlib import Path

from usvar import signals


def test_the_first_signal_is_noted_and_the_handlers_come_back():
    # A shell that starts the tests in the background lets them ignore SIGINT.
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with signals.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler repeats it
        assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_process_that_got_no_signal_itself_says_where_to_go_on():
    """All processes stop together; the exit code of the others is that of Ctrl-C."""
    stop = signals.StopSignal()
    error = stop.as_error(7, Path("out/last.pth"))
    assert str(error) == "step 7 is in out/last.pth; the same command goes on"
    assert error.signal_number == signal.SIGINT
    stop.received = signal.SIGTERM
    assert stop.as_error(7, Path("out/last.pth")).signal_number == signal.SIGTERM
