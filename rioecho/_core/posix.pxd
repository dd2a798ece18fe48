# The C declarations that Cython does not provide; no logic.
# They come from compat.h, which includes the system headers in the right order, and from the headers that include it.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

cdef extern from "rioecho/_core/compat.h" nogil:
    # <sys/socket.h>, <unistd.h>, <fcntl.h>
    ssize_t recv(int fd, void *data, size_t n, int flags)
    ssize_t send(int fd, const void *data, size_t n, int flags)
    ssize_t read(int fd, void *data, size_t n)
    ssize_t write(int fd, const void *data, size_t n)
    int open(const char *path, int flags, ...)
    int close(int fd)
    int fcntl(int fd, int command, ...)
    int64_t lseek(int fd, int64_t offset, int whence)
    int SEEK_CUR
    int F_DUPFD_CLOEXEC
    int F_GETFL
    int O_NONBLOCK
    int O_ACCMODE
    int O_CLOEXEC
    int O_DIRECTORY
    int O_RDONLY
    int O_RDWR
    int O_WRONLY
    int shutdown(int fd, int how)
    int SHUT_WR
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int pipe(int fds[2])
    int FD_CLOEXEC
    int F_SETFD
    int F_SETFL
    int fork()
    int getpid()
    void _exit(int status)
    int kill(int pid, int number)
    int SIGKILL
    int waitpid(int pid, int *status, int options)
    bint WIFSIGNALED(int status)
    int WTERMSIG(int status)
    struct sockaddr_storage:
        pass
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int MSG_PEEK
    int SOCK_STREAM

    # <poll.h>
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned int n, int milliseconds)
    short POLLIN
    short POLLOUT
    short POLLHUP
    short POLLERR
    short POLLNVAL

    # <pthread.h>
    ctypedef struct pthread_t:
        pass
    int pthread_create(pthread_t *thread, const void *attributes, void *(*function)(void *) noexcept nogil, void *data)
    int pthread_atfork(
        void (*before)() noexcept nogil, void (*in_parent)() noexcept nogil, void (*in_child)() noexcept nogil
    )
    int pthread_join(pthread_t thread, void **result)
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

    # <sys/epoll.h>
    union epoll_data "epoll_data_t":
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int what, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int n, int milliseconds)
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL

    # <sys/file.h>
    int flock(int fd, int what)
    int LOCK_EX
    int LOCK_NB

    # <sys/mman.h>
    void *mmap(void *where, size_t n, int protection, int flags, int fd, long offset)
    int munmap(void *data, size_t n)
    void *MAP_FAILED
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    int MAP_ANONYMOUS

    # <sys/stat.h>
    ctypedef unsigned int mode_t
    struct stat_t "stat":
        mode_t st_mode
    int fstat(int fd, stat_t *status)
    bint S_ISSOCK(mode_t mode)
    bint S_ISFIFO(mode_t mode)
    bint S_ISCHR(mode_t mode)
    bint S_ISREG(mode_t mode)
    bint S_ISBLK(mode_t mode)

    # <string.h>, <limits.h>, <sched.h>, <signal.h>
    void *memmem(const void *haystack, size_t n, const void *needle, size_t length)
    size_t PIPE_BUF
    int sched_yield()
    ctypedef struct sigset_t:
        pass

    # _core/compat.h itself
    void rio_assert(bint condition)
    bint rio_rare(bint condition)
    int rio_pipe(int *ends)
    void rio_set_errno(int err)
    int64_t rio_monotonic_ns()
    int64_t rio_thread_ns()
    bint rio_nothing_yet(int fd)
    bint rio_hung_up(int fd)
    int rio_bit_length(uint64_t n)
    void rio_wait_ns(int fd, int64_t ns)
    void rio_wake_exactly(int on)


cdef extern from "rioecho/_core/memory.h" nogil:
    const void *rio_memrchr(const void *data, int byte, size_t n)
    size_t RIO_MAPPED(size_t n)
    char *rio_pages_get(size_t n)
    void rio_pages_give(char *data, size_t n)
    char *rio_pages_resize(char *data, size_t before, size_t n)
    PyObject *rio_bytes_object(char *data)
    void rio_bytes_end(char *data, Py_ssize_t n)
    void rio_bytes_give(char *data)
    char *rio_bytes_resize(char *data, Py_ssize_t n)


cdef extern from "rioecho/_core/memory.h":
    object rio_taken(PyObject *object)   # NULL: raises the exception that is set
    bytes rio_bytes_taken "rio_taken"(PyObject *object)
    list rio_list_taken "rio_taken"(PyObject *object)
    # NULL, with an exception set, if there is no memory.
    PyObject *rio_bytes_new "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t n) noexcept
    PyObject *rio_int_new "PyLong_FromSsize_t"(Py_ssize_t n) noexcept


cdef extern from "rioecho/_core/sockets.h" nogil:
    void rio_no_sigpipe(int fd)
    int rio_accept(int listener, sockaddr_storage *peer)
    void rio_adopt(int fd, sockaddr_storage *peer)
    void rio_peer_name(const sockaddr_storage *peer, char *text, size_t n)
    int rio_listen_queue(int listener)
    int rio_unacknowledged(int fd)
    size_t rio_sure_room(int fd, size_t n)
    bint RIO_ROOM_KNOWN
    int rio_socket_type(int fd)
    int64_t rio_socket_limit_ns(int fd, bint sending)
    void rio_reset_at_close(int fd)
    int rio_socket_error(int fd)


cdef extern from "rioecho/_core/signals.h" nogil:
    ctypedef struct rio_sigpipe:
        int blocked
    void rio_sigpipe_block(rio_sigpipe *guard)
    void rio_sigpipe_restore(const rio_sigpipe *guard)
    void rio_pipe_hold()
    void rio_pipe_release()
    ssize_t rio_write_no_sigpipe(int fd, const void *data, size_t n)
    void rio_signals_hold(sigset_t *before)
    void rio_signals_hold_sent(sigset_t *before)
    void rio_signals_release(const sigset_t *before)


cdef extern from "rioecho/_core/shared.h" nogil:
    uint64_t rio_atomic_add(uint64_t *count, uint64_t n)
    bint rio_atomic_claim(uint64_t *count, uint64_t n)
    uint64_t rio_atomic_load(const uint64_t *count)
    uint64_t rio_load_relaxed(const uint64_t *count)
    void rio_store_relaxed(uint64_t *count, uint64_t n)
    void rio_add_relaxed(uint64_t *count, uint64_t n)
    void rio_bool_set(int *flag, int value)
    int rio_bool_get(const int *flag)
    ctypedef struct rio_flag:
        pass
    uintptr_t RIO_FREE
    uintptr_t RIO_CLOSED
    uintptr_t RIO_LOST
    uintptr_t RIO_LEFT
    bint RIO_HAS_GIL
    uintptr_t rio_this_thread()
    bint rio_flag_take(rio_flag *flag)
    void rio_flag_put(rio_flag *flag, uintptr_t state)
    void rio_flag_release(rio_flag *flag)
    bint rio_flag_resume(rio_flag *flag, bint any)
    void rio_flag_keep(rio_flag *flag, bint keep)
    void rio_flag_let_go(rio_flag *flag)
    void rio_flag_settle(rio_flag *flag)
    bint rio_flag_rests(const rio_flag *flag)
    bint rio_flag_take_briefly(rio_flag *flag)
    void rio_flag_put_briefly(rio_flag *flag)
    void rio_flag_fence()
    int rio_flag_busy(const rio_flag *flag)
    uintptr_t rio_flag_state(const rio_flag *flag)
    bint rio_flag_closed(const rio_flag *flag)
    bint rio_flag_mine(const rio_flag *flag)
    void rio_flag_orphan(rio_flag *flag, uintptr_t state)
    ctypedef struct rio_mutex:
        pass
    void rio_mutex_lock(rio_mutex *mutex)
    void rio_mutex_unlock(rio_mutex *mutex)
    int64_t rio_time_get(const int64_t *ns)
    void rio_time_set(int64_t *ns, int64_t value)
    uintptr_t rio_thread_get(const uintptr_t *thread)
    void rio_thread_set(uintptr_t *thread, uintptr_t value)
    size_t rio_size_get(const size_t *n)
    void rio_size_set(size_t *n, size_t value)


cdef extern from "rioecho/_core/forked.h" nogil:
    void rio_child_signals()
    void rio_close_all_but(const int *keep, size_t n)   # `keep` is sorted in ascending order


cdef extern from "rioecho/_core/peers.h" nogil:
    int RIO_SOURCE_UNKNOWN
    int RIO_SOURCE_UNIX
    int RIO_SOURCE_IP
    ctypedef struct rio_source:
        unsigned char host[16]   # an IPv4 address as an IPv4-mapped IPv6 address
        uint32_t scope
        uint16_t port
        uint8_t kind
        uint8_t is_v4
    void rio_source_set_v4(rio_source *source, const void *host, unsigned int port)
    void rio_source_set_v6(rio_source *source, const void *host, unsigned int port)
    void rio_source_set_unix(rio_source *source)
    bint rio_source_parse(rio_source *source, bint v6, const char *text, unsigned int port)
    void rio_source_of(const sockaddr_storage *address, rio_source *source)
    void rio_source_of_peer(int fd, rio_source *source)
    void rio_source_address(const rio_source *source, sockaddr_storage *address)
