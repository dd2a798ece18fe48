"""The constants and macros of csapp.h and of the C headers that it includes, as far as the book's programs use them."""

from mmap import MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from os import (
    O_APPEND,
    O_CREAT,
    O_EXCL,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    SEEK_CUR,
    SEEK_END,
    SEEK_SET,
    WEXITSTATUS,
    WIFEXITED,
    WIFSIGNALED,
    WIFSTOPPED,
    WNOHANG,
    WSTOPSIG,
    WTERMSIG,
    WUNTRACED,
    environ,
)
from signal import (
    SIG_DFL,
    SIG_IGN,
    SIGALRM,
    SIGCHLD,
    SIGCONT,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGPIPE,
    SIGQUIT,
    SIGSTOP,
    SIGTERM,
    SIGTSTP,
    SIGUSR1,
    SIGUSR2,
)
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AF_UNSPEC,
    AI_ADDRCONFIG,
    AI_ALL,
    AI_CANONNAME,
    AI_NUMERICHOST,
    AI_NUMERICSERV,
    AI_PASSIVE,
    AI_V4MAPPED,
    INADDR_ANY,
    INADDR_LOOPBACK,
    IPPROTO_TCP,
    NI_DGRAM,
    NI_MAXHOST,
    NI_MAXSERV,
    NI_NAMEREQD,
    NI_NOFQDN,
    NI_NUMERICHOST,
    NI_NUMERICSERV,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SO_KEEPALIVE,
    SO_RCVTIMEO,
    SO_REUSEADDR,
    SO_SNDTIMEO,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    SOMAXCONN,
    TCP_NODELAY,
    htonl,
    htons,
    inet_ntop,
    inet_pton,
    ntohl,
    ntohs,
)
from stat import (
    S_IRGRP,
    S_IROTH,
    S_IRUSR,
    S_IRWXG,
    S_IRWXO,
    S_IRWXU,
    S_ISCHR,
    S_ISDIR,
    S_ISFIFO,
    S_ISLNK,
    S_ISREG,
    S_ISSOCK,
    S_IWGRP,
    S_IWOTH,
    S_IWUSR,
    S_IXGRP,
    S_IXOTH,
    S_IXUSR,
)

from rioecho._core.addresses import LISTENQ

#: The maximum length of a text line in bytes, including the newline and the NUL of the C string.
MAXLINE = 8192
#: The maximum size of an I/O buffer in bytes.
MAXBUF = 8192
#: The size of the buffer in ``rio_t``, in bytes.
RIO_BUFSIZE = 8192
#: ``select()`` handles only descriptors below it.
FD_SETSIZE = 1024
STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO = 0, 1, 2
#: The permissions that the book gives to new files, and the mask it sets.
DEF_MODE = S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH
DEF_UMASK = S_IWGRP | S_IWOTH

__all__ = [
    "AF_INET", "AF_INET6", "AF_UNIX", "AF_UNSPEC", "AI_ADDRCONFIG", "AI_ALL", "AI_CANONNAME", "AI_NUMERICHOST",
    "AI_NUMERICSERV", "AI_PASSIVE", "AI_V4MAPPED", "DEF_MODE", "DEF_UMASK", "FD_SETSIZE", "INADDR_ANY",
    "INADDR_LOOPBACK", "IPPROTO_TCP", "LISTENQ", "MAP_PRIVATE", "MAP_SHARED", "MAXBUF", "MAXLINE", "NI_DGRAM", "NI_MAXHOST", "NI_MAXSERV",
    "NI_NAMEREQD", "NI_NOFQDN", "NI_NUMERICHOST", "NI_NUMERICSERV", "O_APPEND", "O_CREAT", "O_EXCL", "O_NONBLOCK",
    "O_RDONLY", "O_RDWR", "O_TRUNC", "O_WRONLY", "PROT_READ", "PROT_WRITE", "RIO_BUFSIZE", "SEEK_CUR", "SEEK_END", "SEEK_SET", "SHUT_RD",
    "SHUT_RDWR", "SHUT_WR", "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGINT", "SIGKILL", "SIGPIPE", "SIGQUIT",
    "SIGSTOP", "SIGTERM", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIG_DFL", "SIG_IGN", "SOCK_DGRAM", "SOCK_STREAM",
    "SOL_SOCKET", "SOMAXCONN", "SO_KEEPALIVE", "SO_RCVTIMEO", "SO_REUSEADDR", "SO_SNDTIMEO", "STDERR_FILENO",
    "STDIN_FILENO", "STDOUT_FILENO", "S_IRGRP", "S_IROTH", "S_IRUSR", "S_IRWXG", "S_IRWXO", "S_IRWXU", "S_ISCHR",
    "S_ISDIR", "S_ISFIFO", "S_ISLNK", "S_ISREG", "S_ISSOCK", "S_IWGRP", "S_IWOTH", "S_IWUSR", "S_IXGRP", "S_IXOTH",
    "S_IXUSR", "TCP_NODELAY", "WEXITSTATUS", "WIFEXITED", "WIFSIGNALED", "WIFSTOPPED", "WNOHANG", "WSTOPSIG",
    "WTERMSIG", "WUNTRACED", "environ", "htonl", "htons", "inet_ntop", "inet_pton", "ntohl", "ntohs",
]  # fmt: skip
