"""The asyncio twin of rioecho: the same names and promises on asyncio's loop and on uvloop."""

from rioecho.aio.connecting import connect, start_server, wrap
from rioecho.aio.rio import Rio

__all__ = ["Rio", "connect", "start_server", "wrap"]
