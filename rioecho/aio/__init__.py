"""The asyncio twin of rioecho: the same names and promises on asyncio's loop and on uvloop."""

from rioecho.aio.connecting import connect
from rioecho.aio.rio import Rio
from rioecho.aio.serving import start_server
from rioecho.aio.wrapping import wrap

__all__ = ["Rio", "connect", "start_server", "wrap"]
