/* The address of a peer in a few bytes, of a socket or from a PROXY header. */
#ifndef RIOECHO_PEERS_H
#define RIOECHO_PEERS_H

#include "rioecho/_core/compat.h"

enum { RIO_SOURCE_UNKNOWN, RIO_SOURCE_UNIX, RIO_SOURCE_IP };

typedef struct {
    unsigned char host[16]; /* an IPv4 address as an IPv4-mapped IPv6 address (::ffff:a.b.c.d) */
    uint32_t scope;
    uint16_t port;
    uint8_t kind;
    uint8_t is_v4;
} rio_source;

static inline void rio_source_set_v4(rio_source *source, const void *host, unsigned port)
{
    memset(source, 0, sizeof *source);
    source->host[10] = source->host[11] = 0xff;
    memcpy(source->host + 12, host, 4);
    source->port = (uint16_t)port;
    source->kind = RIO_SOURCE_IP;
    source->is_v4 = 1;
}

static inline void rio_source_set_v6(rio_source *source, const void *host, unsigned port)
{
    memset(source, 0, sizeof *source);
    memcpy(source->host, host, 16);
    source->port = (uint16_t)port;
    source->kind = RIO_SOURCE_IP;
}

static inline void rio_source_set_unix(rio_source *source)
{
    memset(source, 0, sizeof *source);
    source->kind = RIO_SOURCE_UNIX;
}

/* Parse a numeric address, IPv6 if `v6`; return 0 if it is none. */
static inline int rio_source_parse(rio_source *source, int v6, const char *text, unsigned port)
{
    unsigned char host[16];
    if (inet_pton(v6 ? AF_INET6 : AF_INET, text, host) != 1)
        return 0;
    if (v6)
        rio_source_set_v6(source, host, port);
    else
        rio_source_set_v4(source, host, port);
    return 1;
}

/* Get the source of the address of a socket. */
static inline void rio_source_of(const struct sockaddr_storage *address, rio_source *source)
{
    memset(source, 0, sizeof *source);
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *ip = (const struct sockaddr_in *)address;
        rio_source_set_v4(source, &ip->sin_addr, ntohs(ip->sin_port));
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *ip = (const struct sockaddr_in6 *)address;
        rio_source_set_v6(source, &ip->sin6_addr, ntohs(ip->sin6_port));
        source->scope = ip->sin6_scope_id;
    } else if (address->ss_family == AF_UNIX) {
        rio_source_set_unix(source);
    }
}

/* The same for the peer of a connected socket. */
static inline void rio_source_of_peer(int fd, rio_source *source)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    memset(&address, 0, sizeof address);
    if (getpeername(fd, (struct sockaddr *)&address, &length) < 0)
        memset(&address, 0, sizeof address);
    rio_source_of(&address, source);
}

/* Get the socket address of a source. */
static inline void rio_source_address(const rio_source *source, struct sockaddr_storage *address)
{
    memset(address, 0, sizeof *address);
    if (source->kind == RIO_SOURCE_UNIX) {
        address->ss_family = AF_UNIX;
    } else if (source->kind == RIO_SOURCE_IP && source->is_v4) {
        struct sockaddr_in *ip = (struct sockaddr_in *)address;
        ip->sin_family = AF_INET;
        ip->sin_port = htons(source->port);
        memcpy(&ip->sin_addr, source->host + 12, 4);
    } else if (source->kind == RIO_SOURCE_IP) {
        struct sockaddr_in6 *ip = (struct sockaddr_in6 *)address;
        ip->sin6_family = AF_INET6;
        ip->sin6_port = htons(source->port);
        ip->sin6_scope_id = source->scope;
        memcpy(&ip->sin6_addr, source->host, 16);
    }
}

#endif
