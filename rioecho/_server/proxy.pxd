# The parser of a PROXY header, with which a load balancer passes on the address of its client: versions 1 and 2 of the
# protocol of HAProxy (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt). All engines use it. It is given
# the bytes as they arrive, in pieces of any size, and takes none that follow the header.

from libc.string cimport memchr, memcmp, memcpy, memset

from rioecho._core.posix cimport (
    rio_source,
    rio_source_parse,
    rio_source_set_unix,
    rio_source_set_v4,
    rio_source_set_v6,
)


cdef enum:
    PROXY_LINE = 107    # maximum length of a header of version 1
    PROXY_FIXED = 16    # length of the fixed part of version 2: signature, command, family, length
    PROXY_SIGNATURE = 12


cdef enum proxy_answer:
    PROXY_MORE    # the header is incomplete
    PROXY_DONE
    PROXY_WRONG   # it is no PROXY header


cdef struct proxy_t:
    # Initialised by setting it to zero.
    char text[PROXY_LINE + 1]
    size_t held          # number of bytes in `text`
    size_t wanted        # version 2: length of the fixed part and of the addresses that are read, once known
    size_t skipped       # version 2: number of bytes after those that are still to be skipped (TLVs)
    bint done
    rio_source source    # of unknown kind without an address (LOCAL, UNKNOWN, UNSPEC): that of the connection counts


cdef inline bint proxy_is_begun(const proxy_t *p) noexcept nogil:
    """Report whether a part of the header has arrived, and not all of it."""
    return p.held > 0 and not p.done


cdef inline int proxy_port(const char *digits) noexcept nogil:
    """Return a port number, or -1 if the text is none: it has no leading zeros."""
    cdef int port = 0
    cdef int n = 0
    while digits[n]:
        if not c'0' <= digits[n] <= c'9' or n == 5 or (n and digits[0] == c'0'):
            return -1
        port = port * 10 + (digits[n] - c'0')
        n += 1
    return port if n and port <= 65535 else -1


cdef inline proxy_answer proxy_line(proxy_t *p) noexcept nogil:
    """Parse the header of version 1 in ``text``, which ends in CRLF: ``PROXY TCP4 SOURCE DESTINATION PORT PORT``."""
    cdef const char *word[6]
    cdef char *space = p.text
    cdef int n = 0
    cdef int port
    cdef bint v6
    cdef rio_source ignored
    p.text[p.held - 2] = 0
    while n < 6:
        word[n] = space
        n += 1
        space = <char *>memchr(space, c' ', p.text + p.held - 2 - space)
        if space == NULL:
            break
        space[0] = 0
        space += 1
    if n >= 2 and memcmp(word[1], b"UNKNOWN", 8) == 0:
        return PROXY_DONE   # what follows is to be ignored
    if n != 6 or space != NULL or memcmp(word[1], b"TCP", 3) != 0:
        return PROXY_WRONG
    v6 = word[1][3] == c'6'
    if (not v6 and word[1][3] != c'4') or word[1][4] != 0:
        return PROXY_WRONG
    port = proxy_port(word[4])
    if port < 0 or proxy_port(word[5]) < 0 or not rio_source_parse(&ignored, v6, word[3], 0):
        return PROXY_WRONG
    return PROXY_DONE if rio_source_parse(&p.source, v6, word[2], port) else PROXY_WRONG


cdef inline proxy_answer proxy_fixed(proxy_t *p) noexcept nogil:
    """Parse the fixed part of version 2; the addresses follow."""
    cdef const unsigned char *head = <const unsigned char *>p.text
    cdef size_t length = (<size_t>head[14] << 8) | head[15]
    cdef size_t addresses = 0, least = 0
    cdef int command = head[12] & 15
    cdef int family = head[13] >> 4
    cdef int transport = head[13] & 15
    if head[12] >> 4 != 2 or command > 1:
        return PROXY_WRONG
    if command == 1:   # of LOCAL the family and the addresses are to be ignored
        if family > 3 or transport > 2:
            return PROXY_WRONG
        if transport == 0:
            family = 0   # addresses without a transport protocol are to be ignored, as those without a family
        if family == 1:
            addresses = least = 12
        elif family == 2:
            addresses = least = 36
        elif family == 3:
            least = 216
            rio_source_set_unix(&p.source)
    if length < least:
        return PROXY_WRONG
    p.wanted = PROXY_FIXED + addresses
    p.skipped = length - addresses
    return PROXY_MORE


cdef inline void proxy_addresses(proxy_t *p) noexcept nogil:
    """Parse the addresses of version 2, which are the source's, the destination's and their ports."""
    cdef const unsigned char *block = <const unsigned char *>p.text + PROXY_FIXED
    if p.wanted == PROXY_FIXED + 12:
        rio_source_set_v4(&p.source, block, (<unsigned int>block[8] << 8) | block[9])
    elif p.wanted == PROXY_FIXED + 36:
        rio_source_set_v6(&p.source, block, (<unsigned int>block[32] << 8) | block[33])


cdef inline proxy_answer proxy_byte(proxy_t *p) noexcept nogil:
    """Check the last byte of ``text``, and parse what it completes."""
    cdef const char *signature = b"\r\n\r\n\0\r\nQUIT\n"
    cdef char c = p.text[p.held - 1]
    cdef proxy_answer answer
    if p.text[0] == signature[0]:
        if p.held <= PROXY_SIGNATURE and c != signature[p.held - 1]:
            return PROXY_WRONG
        if p.held == PROXY_FIXED:
            answer = proxy_fixed(p)
            if answer == PROXY_WRONG:
                return answer
        if p.held < PROXY_FIXED or p.held < p.wanted:
            return PROXY_MORE
        proxy_addresses(p)
        return PROXY_MORE if p.skipped else PROXY_DONE
    if p.held <= 6:
        return PROXY_MORE if c == (<const char *>b"PROXY ")[p.held - 1] else PROXY_WRONG
    if p.text[p.held - 2] == c'\r':
        return proxy_line(p) if c == c'\n' else PROXY_WRONG
    if c != c'\r' and not c' ' <= c <= c'~':
        return PROXY_WRONG
    return PROXY_WRONG if p.held == PROXY_LINE else PROXY_MORE


cdef inline proxy_answer proxy_feed(proxy_t *p, const char *data, size_t n, size_t *used) noexcept nogil:
    """Parse n further bytes; store in ``used`` how many of them belong to the header."""
    cdef proxy_answer answer = PROXY_MORE
    cdef size_t i = 0, piece
    while i < n and answer == PROXY_MORE:
        if p.wanted and p.held == p.wanted:
            piece = min(p.skipped, n - i)
            p.skipped -= piece
            i += piece
            if p.skipped == 0:
                answer = PROXY_DONE
        else:
            p.text[p.held] = data[i]
            p.held += 1
            i += 1
            answer = proxy_byte(p)
    used[0] = i
    p.done = answer == PROXY_DONE
    return answer
