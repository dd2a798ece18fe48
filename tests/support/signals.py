"""Signal handlers that raise during a call. The fixtures about signals are in conftest.py."""

import signal

import pytest


def interrupted(on_alarm, call, seconds=0.05):
    """Raise KeyboardInterrupt in a call from a signal handler, and return pytest's record of it."""

    def interrupt(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        # Repeatedly, because a signal may arrive between Python's last check and the system call.
        on_alarm(interrupt, seconds, interval=0.05)
        call()
    return caught
