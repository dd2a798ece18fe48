"""The pollers of the event loops that this build has."""

import pytest

from rioecho._server.eventloop import pollers

#: "epoll" on Linux, "kqueue" on macOS and the BSDs and in a build with libkqueue, and "poll".
POLLERS = pollers()

each_poller = pytest.mark.parametrize("poller", POLLERS)
