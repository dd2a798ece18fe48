"""The pollers of the event loops that this build has."""

import os

import pytest

from rioecho._server.eventloop import EventLoop


def _is_there(poller):
    reader, writer = os.pipe()
    try:
        EventLoop(
            "raw",
            idle_timeout=None,
            max_line=0,
            drain_timeout=None,
            stop_fd=reader,
            on_closed=print,
            poller=poller,
        ).close()
    except OSError:  # ENOSYS
        return False
    finally:
        os.close(reader)
        os.close(writer)
    return True


#: "epoll" on Linux, "kqueue" on macOS and the BSDs and in a build with libkqueue, and "poll".
POLLERS = [poller for poller in ("epoll", "kqueue", "poll") if _is_there(poller)]

each_poller = pytest.mark.parametrize("poller", POLLERS)
