"""The robust I/O (RIO) package of Computer Systems: A Programmer's Perspective, for Python."""

from rioecho.errors import ConcurrentCall, IncompleteRead, LineTooLong
from rioecho.rio import Rio

__version__ = "0.1.0"
