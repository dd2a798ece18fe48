"""What kind of thing a Rio is made for: a descriptor, or an object that moves its bytes itself.

The descriptor is used where the object's methods are those of the standard library in C, which do nothing else with
it. What was replaced, by a subclass, an attribute of the object or a patched module, decides; names of classes do not.
"""

import sys

cimport cython
from cpython.object cimport PyObject, PyTypeObject

from rioecho._core.convert cimport is_tls
from rioecho._rio.channel cimport Channel
from rioecho._rio.transport cimport Transport

from rioecho._core.sources import stream_of


cdef extern from *:
    """
    /* A number that no other class has, nor this one after a change in it or in a base. 0: it has none now. */
    static inline unsigned int rio_class_version(PyTypeObject *kind)
    {
        return __atomic_load_n(&kind->tp_version_tag, __ATOMIC_RELAXED);
    }
    static inline unsigned int rio_version_get(const unsigned int *version)
    {
        return __atomic_load_n(version, __ATOMIC_RELAXED);
    }
    static inline void rio_version_set(unsigned int *version, unsigned int value)
    {
        __atomic_store_n(version, value, __ATOMIC_RELAXED);
    }
    """
    unsigned int class_version "rio_class_version"(PyTypeObject *kind) noexcept
    unsigned int version_get "rio_version_get"(const unsigned int *version) noexcept
    void version_set "rio_version_set"(unsigned int *version, unsigned int value) noexcept


cdef tuple METHODS = ("recv", "recv_into", "send", "sendall")
cdef tuple FILE_READS = ("recv_into",)   # what socket.SocketIO calls
cdef tuple FILE_WRITES = ("send",)
cdef tuple FILE_METHODS = FILE_READS + FILE_WRITES
cdef tuple TLS_METHODS = (*METHODS, "read", "write", "pending")

# The version of the last class of which is_plain_tls() was true, as long as the class is not changed.
cdef unsigned int tls_version = 0

# Functions of the modules of the transports. A module is loaded with the first source that needs it.
cdef object tls_of = None
cdef object pyopenssl_of = None
cdef object socket_like = None


cdef Transport over_tls(object sock):
    global tls_of
    if tls_of is None:
        from rioecho._rio import tls
        tls_of = tls.tls_of
    return tls_of(sock)


cdef Transport over_pyopenssl(object connection):
    global pyopenssl_of
    if pyopenssl_of is None:
        from rioecho._rio import pyopenssl
        pyopenssl_of = pyopenssl.pyopenssl_of
    return pyopenssl_of(connection)


cdef Transport over_methods(object source, bint by_recv):
    """Return a transport that calls an object's methods. ``by_recv``: ``recv()`` even if it has ``recv_into()``."""
    global socket_like
    if socket_like is None:
        from rioecho._rio import socketlike
        socket_like = socketlike.socket_like
    return socket_like(source, by_recv)


cdef Transport transport_of(object source):
    """Return the transport that moves the bytes of ``source``; None if its descriptor is read and written.

    Raises ``TypeError`` for an object that can only be read from, or only be sent to, by its own methods, and for one
    that carries packets or messages; ``ValueError`` for one that may hold bytes in a buffer of its own.
    """
    cdef Channel other
    if isinstance(source, int):
        return None
    module = sys.modules.get("socket")
    if module is not None and isinstance(source, module.SocketIO):
        return file_transport_of(source._sock, source.readable(), source.writable())
    source = stream_of(source)
    if isinstance(source, Channel):
        other = source
        with cython.critical_section(other):   # another thread may be closing it
            return other.transport
    if module is not None and isinstance(source, module.SocketIO):   # below a buffered file
        return file_transport_of(source._sock, source.readable(), source.writable())
    if is_known_tls(source):
        return over_tls(source)
    if is_plain(source, METHODS):
        return None
    if is_tls(source) and is_plain_tls(source):
        return over_tls(source)
    if is_pyopenssl(source):
        return over_pyopenssl(source)
    if not (hasattr(source, "recv") or hasattr(source, "recv_into") or hasattr(source, "send")):
        return None
    for missing in ("send", "recv"):
        if not hasattr(source, missing) and not (missing == "recv" and hasattr(source, "recv_into")):
            raise TypeError(
                f"{type(source).__name__} has no {missing}(): a socket-like object needs recv() or recv_into(), "
                "and send()"
            )
    if is_of_packets(source):
        raise TypeError(
            f"a byte stream is required: this {type(source).__name__} is of a type that carries packets "
            "(SOCK_DGRAM, SOCK_SEQPACKET), which a read would cut; use its own recv() and send()"
        )
    return over_methods(source, depth(source, "recv") < depth(source, "recv_into"))


cdef Transport file_transport_of(object sock, bint reading, bint writing):
    """Return the transport for a file of ``sock``, which reads and sends by the methods that a ``SocketIO`` calls."""
    cdef tuple called
    if is_known_tls(sock):
        return over_tls(sock)
    if reading and writing:
        called = FILE_METHODS
    else:
        called = FILE_READS if reading else FILE_WRITES
    if is_plain(sock, called):
        return None
    if is_tls(sock) and is_plain_tls(sock):
        return over_tls(sock)
    if is_pyopenssl(sock):
        return over_pyopenssl(sock)
    if not (hasattr(sock, "recv") or hasattr(sock, "recv_into") or hasattr(sock, "send")):
        return None
    return over_methods(sock, not hasattr(sock, "recv_into"))


cdef object RAW_SOCKET = None


cdef object raw_socket():
    """Return ``_socket.socket``, the class in C, or None if nothing has imported it: then there is no socket."""
    global RAW_SOCKET
    if RAW_SOCKET is None:
        module = sys.modules.get("_socket")
        if module is not None:
            RAW_SOCKET = module.socket
    return RAW_SOCKET


cdef Py_ssize_t depth(object source, str name) except -2:
    """Return how far from an object its attribute is defined: 0 for itself, n for the n-th class of its MRO."""
    cdef Py_ssize_t place = 1
    if name in getattr(source, "__dict__", ()):
        return 0
    for kind in type(source).__mro__:
        if name in vars(kind):
            return place
        place += 1
    return place + (not hasattr(source, name))   # __getattr__(), which comes last


cdef bint is_plain(object source, tuple methods) except -1:
    """Report whether an object is a socket whose ``methods`` are those in C."""
    raw = raw_socket()
    return raw is not None and isinstance(source, raw) and is_from(source, raw, methods)


cdef inline bint is_known_tls(object source) except -1:
    """Report whether ``is_plain_tls()`` is true, for a class of which it was true before; else it may be."""
    cdef unsigned int version = class_version((<PyObject *>source).ob_type)
    return version != 0 and version == version_get(&tls_version) and not sets_any(source, TLS_METHODS)


cdef bint is_plain_tls(object source) except -1:
    """Report whether the methods of an ``SSLSocket`` are those of the ssl module, and that is the original one."""
    cdef object kind = type(source)
    cdef unsigned int version = class_version(<PyTypeObject *>kind)
    module = vars(sys.modules["ssl"])
    for owner in kind.__mro__:
        if owner.__module__ == "ssl" and owner.__name__ == "SSLSocket":
            if not issubclass(owner, raw_socket()) or not is_from(source, owner, TLS_METHODS):
                return False
            for name in TLS_METHODS:   # a program may have set another function in the class itself
                if getattr(getattr(owner, name), "__globals__", None) is not module:
                    return False
            if version == class_version(<PyTypeObject *>kind):   # it was not changed in the meantime
                version_set(&tls_version, version)
            return True
    return False


cdef bint is_from(object source, object owner, tuple methods) except -1:
    """Report whether the methods of an object are those of ``owner``, a class that it is derived from."""
    cdef object kind = type(source)
    for name in methods:
        if getattr(kind, name) is not getattr(owner, name):
            return False
    return not sets_any(source, methods)


cdef bint sets_any(object source, tuple methods) except -1:
    """Report whether any of these attributes is set on the object itself."""
    if (<PyObject *>source).ob_type.tp_dictoffset == 0:   # a plain socket; asking takes longer than the rest
        return False
    instance = getattr(source, "__dict__", ())
    if type(instance) is dict:
        for name in methods:
            if name in <dict>instance:
                return True
        return False
    for name in methods:
        if name in instance:
            return True
    return False


cdef bint is_of_packets(object source) except -1:
    """Report whether an object says by its ``type``, as sockets do, that it is no stream."""
    module = sys.modules.get("_socket")
    if module is None or not hasattr(source, "family"):
        return False
    return source.type in (module.SOCK_DGRAM, module.SOCK_SEQPACKET, module.SOCK_RAW)


cdef bint is_pyopenssl(object source) except -1:
    """Report whether the source is an ``OpenSSL.SSL.Connection``, without importing that module.

    One whose methods are overridden is an object with methods like any other, as is that of a version of pyOpenSSL
    without the private names that _rio/pyopenssl.pyx uses.
    """
    module = sys.modules.get("OpenSSL.SSL")
    return (
        module is not None
        and isinstance(source, module.Connection)
        and is_from(source, module.Connection, ("recv_into", "send"))
        and hasattr(module, "_lib")
        and hasattr(module, "_ffi")
        and hasattr(source, "_ssl")
        and hasattr(source, "_socket")
        and hasattr(source, "_raise_ssl_error")
    )
