# The reading methods for bytes that are given to the object, not read by it; see _rio/fed.pyx.

from cpython.object cimport PyObject

from rioecho._rio.framing cimport Framing


cdef enum method:
    NOTHING       # a request whose arguments are not converted yet; it is 0
    LINE          # readline
    LINES         # readlines1
    ALL_LINES     # readlines
    UNTIL         # readuntil
    NUMBER        # read, readexactly
    SOME          # read1
    PAYLOAD       # readframe
    SKIP          # skip
    SKIPLINE      # skipline
    PEEK          # peek
    HOLD          # fill
    INTO          # readinto, readinto1


cdef struct request:
    # One call: the method and its arguments, converted.
    method what
    size_t n         # number of bytes, or the limit, or for readlines the hint; SIZE_MAX for none
    size_t width     # of the length in front of a payload
    bint strict      # UNTIL, NUMBER: whether the end of the input is an error; INTO: whether `n` bytes are to come
    bint cut         # LINE: whether a longer line is returned cut
    bint little      # PAYLOAD: the byte order
    size_t whole     # ALL_LINES: number of held bytes in complete lines, and how many of the next line were searched
    size_t scanned
    PyObject *sep    # UNTIL: the separator, borrowed, until it has been set; then NULL
    char *into       # INTO: where to store the bytes


cdef object MISSING   # the answer of a request for which bytes are missing


cdef class Fed(Framing):
    cdef bint ended   # whether the input has ended

    cdef int put(self, const char *data, size_t n) except -1
    cdef int add(self, object data, bint late) except -1
    cdef object answer(self, request *r)
    cdef object all_lines(self, request *r)
    cdef bint may_have(self, request *r) noexcept


cdef inline void ask(request *r, method what, size_t n) noexcept:
    r.what = what
    r.n = n
    r.strict = r.cut = False
    r.whole = r.scanned = 0


cdef int ask_line(request *r, Fed self, object limit) except -1
cdef int ask_until(request *r, Fed self, object sep, object limit) except -1
cdef int ask_payload(request *r, Fed self, object width, object byteorder, object limit) except -1
