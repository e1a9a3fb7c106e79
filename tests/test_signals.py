"""Signals: noted by a loop that then saves and stops."""

import os
import signal

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
