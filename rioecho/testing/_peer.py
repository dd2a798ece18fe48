"""Class Peer: a server that plays steps to each client."""

from __future__ import annotations

import select
import time
from typing import TypeAlias

from rioecho.testing._conversation import Conversation, LostError, StoppedError, UnmetError
from rioecho.testing._service import Service
from rioecho.testing._steps import Step, check_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import ssl

#: The longest time, in seconds, that the threads are given to take what has arrived.
PATIENCE = 1.0


class Peer(Service):
    r"""A server that plays its steps to each client: ``Peer(expect(b"PING\r\n"), send(b"PONG\r\n"))``.

    It listens on a free port of 127.0.0.1, or with ``unix=True`` on a unix socket, from ``start()`` to ``close()`` or
    for the length of a ``with`` or ``async with`` block. Each client has a thread of its own and all the steps. After
    the last step the sending side is closed, and what the client still sends is received until it closes. With
    ``tls``, the context of a server, each conversation begins with a handshake.

    At ``close()`` no step waits any longer: an ``expect()`` is met by what has arrived, or not; of the other steps,
    one that would wait ends the conversation.
    """

    def __init__(self, *steps: Step, tls: ssl.SSLContext | None = None, unix: bool = False) -> None:
        check_order(steps)
        if tls is not None:
            check_context(tls)
        super().__init__(unix=unix)
        self._steps = steps
        self._tls = tls
        self._conversations: list[Conversation] = []
        self._errors: list[AssertionError] = []

    def __repr__(self) -> str:
        return f"Peer({', '.join(map(repr, self._steps))})"

    @property
    def received(self) -> bytes:
        """All bytes received so far, the first client's first.

        What a client has sent is among them, unless the step being played does not receive.
        """
        self._settle()
        with self._lock:
            return b"".join(bytes(each.received) for each in self._conversations)

    @property
    def errors(self) -> list[AssertionError]:
        """The expectations that were not met, in the order of time. Whoever empties the list has dealt with them."""
        self._settle()
        return self._errors

    def check(self) -> None:
        """Raise ``AssertionError`` for the expectations that were not met so far, and empty the list of errors."""
        errors = [*self.errors]
        del self._errors[: len(errors)]
        if errors:
            raise AssertionError("\n".join(map(str, errors)))

    def _begin(self, sock: socket.socket, number: int) -> None:
        assert self._ending is not None  # noqa: S101 - for type checkers
        talk = Conversation(sock, self._ending, self._lock)
        self._run(lambda: self._play(talk, number), sock, number)
        self._conversations.append(talk)

    def _play(self, talk: Conversation, number: int) -> None:
        reached = 0
        try:
            talk.begin(self._tls)
            for reached, step in enumerate(self._steps, 1):  # noqa: B007 - for the messages
                step._play(talk)
            talk.finish()
        except UnmetError as error:
            self._report(number, reached, str(error))
        except LostError as error:
            for later, step in enumerate(self._steps[max(reached - 1, 0) :], max(reached, 1)):
                if step._expects:
                    self._report(number, later, f"expected {step._expects}, but before that {error}")
                    break
        except StoppedError:
            pass
        except Exception as error:  # a mistake of this module's must not pass for a well-behaved peer
            self._report(number, reached, repr(error))
        finally:
            talk.close()
            talk.ended = True

    def _report(self, client: int, step: int, text: str) -> None:
        self._errors.append(AssertionError(f"peer, client {client}, step {step}: {text}"))

    def _settle(self) -> None:
        """Wait until the threads have taken what has arrived, so that what a client has sent before counts."""
        deadline = time.monotonic() + PATIENCE
        while not self._settled() and time.monotonic() < deadline:
            time.sleep(0.0005)

    def _settled(self) -> bool:
        if self._ending is None or self._closed:
            return True
        with self._lock:
            poller = select.poll()
            poller.register(self._listener.fileno(), select.POLLIN)
            return not poller.poll(0) and all(each.settled() for each in self._conversations)


#: The type of the fixture ``peer``. It is called as the class is; what it returns has been started and is closed after
#: the test.
PeerFactory: TypeAlias = type[Peer]


def check_context(tls: ssl.SSLContext) -> None:
    """Raise TypeError or ValueError for what is no context of a server."""
    import ssl

    if not isinstance(tls, ssl.SSLContext):
        raise TypeError(f"tls must be an ssl.SSLContext, not {type(tls).__name__}")
    if tls.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError("tls must be the context of a server: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)")
