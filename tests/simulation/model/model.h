/* The model of a kernel and of the clients of one server: what the files of this folder share.
 *
 *   schedule.c   the clock, the two threads, of which one runs at a time, and the history
 *   clients.c    the clients and the network between them and the server
 *   conns.c      the server's side of a connection
 *   files.c      descriptors, pipes, and the readiness of each
 *   waits.c      poll(2) and epoll(7)
 *   rules.c      what must hold
 *   memory.c     the memory limit
 *   calls.c      the functions of the C library in front of it
 *
 * Times are nanoseconds on the monotonic clock. All state is used by the thread whose turn it is, and by no other.
 */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>
#include <stddef.h>
#include <sys/types.h>

#define NEVER INT64_MAX
#define MICROSECOND ((int64_t)1000)
#define MILLISECOND ((int64_t)1000000)
#define SECOND ((int64_t)1000000000)

enum { FIRST_FD = 1000, FDS = 1024, CLIENTS_MAX = 400, THREADS = 2, WATCHES = FDS };
enum { ACCEPTOR, LOOP }; /* the threads */

/* What the seed has chosen for the whole history; history.py fills it in. Rates are chances in 1024. */
struct plan {
    uint64_t seed;
    int64_t idle;        /* idle timeout, or -1 */
    int64_t drain;       /* drain timeout, or -1 */
    int64_t stop_at;     /* time of the stop, from the start; if nothing is going to happen any more, it comes earlier */
    uint64_t max_line;   /* 0: no limit */
    uint64_t max_memory; /* 0: no limit */
    int clients;
    int limit;    /* most connections at once; 0: no limit */
    int per_host; /* most connections of an address; 0: no limit */
    int span_ms;  /* the clients connect within this time */
    int raw;      /* raw framing */
    int lines;    /* each line is reported */
    int handled;  /* a handler answers, which treats a part of a line as none; 2: it ends connections (rules.c) */
    int big;      /* chance that a client sends much */
    int no_splice; /* an errno of splice(2), or 0 */
    int interrupt; /* rate of EINTR */
    int refuse;    /* of EAGAIN although there is room */
    int cut;       /* of transfers of a part */
    int fail;      /* of errors that end a connection */
    int preempt;   /* of changes of the thread in the middle of a turn */
    int spurious;  /* of events that are none */
    int freeze;    /* of waits after which the process has been suspended for long */
    int scarce;    /* of failed accepts, and of failed calls of the poller */
    int corrupt;   /* of wrong bytes, which a rule must find */
    int trace;     /* whether to print the history */
};
extern struct plan plan;

/* ---- connections and their clients */

enum action { CONNECT, SEND, ARRIVE, ACKNOWLEDGE, READ, END, LEAVE, GIVE_UP, ACTIONS };
enum ending { HALF_CLOSE, CLOSE, RESET, VANISH, STAY, ENDINGS };

struct client {
    int number, is_unix, host;
    /* The server's socket. */
    int fd;            /* -1: not accepted, or closed */
    int order;         /* in which it was accepted: 1, 2 ... */
    int is_nonblocking, is_reset_at_close;
    unsigned char *data; /* all that the client sends */
    size_t total;
    size_t sent;       /* bytes of data that the client has sent ... */
    size_t arrived;    /* ... that the server's kernel has, and has acknowledged ... */
    size_t taken;      /* ... that the server has read ... */
    size_t heard;      /* ... before it had closed its sending side */
    size_t due;        /* the bytes that are to be echoed without waiting for more */
    size_t part_due;   /* the same, of a part of a line that there was no memory for the rest of */
    size_t put;        /* bytes that the server has sent ... */
    size_t acked;      /* ... that the client's kernel has ... */
    size_t read;       /* ... that the client has read */
    size_t most_held;  /* the most bytes that it has held since it held none */
    size_t at_stop;    /* what had arrived at the stop */
    size_t in_room, out_room, window, pipe; /* sizes of the buffers: received, to be sent, of the client, its own to send */
    int fin_sent, fin_arrived;
    int error;         /* pending error of the server's socket */
    int is_dead;       /* reset or timed out: neither sends nor receives any more */
    int shut;          /* the server has closed its sending side */
    int is_closed;     /* the server has closed the socket */
    int is_lost;       /* the connection was reset at the client's end */
    int is_gone;       /* the client has closed its socket, or vanished */
    int saw_end;       /* it has read to the end */
    /* What the server was told. */
    int failed;        /* errno of a call that ends the connection */
    int told_end;      /* a read returned 0 */
    int drained;       /* a read after the stop found nothing */
    int shut_failed;
    int leaves;        /* its handler has closed it, or failed, or its line is too long */
    int aborts;        /* its handler has aborted it */
    int is_wrong;      /* which counts as an error */
    int is_ended;      /* it was closed after the end of input, with everything sent */
    int is_watched;    /* the loop has begun to serve it */
    int asked;         /* the number of unacknowledged bytes that it was told last, or -1 */
    int64_t connected_at, progress_at, late_at, shut_at, linger_late, unwatched_at, late_unwatched;
    /* Its script. */
    enum ending ending;
    int abrupt;        /* it ends whatever it has sent and read */
    size_t piece, bite;         /* largest number of bytes that it sends and reads at once; bite 0: it never reads */
    int64_t pace, read_pace, delay; /* typical times between two pieces, two reads, and on the way */
    int blocked, ignores_end;
    int64_t at[ACTIONS];
};
extern struct client clients[CLIENTS_MAX];

void clients_begin(void);
void clients_end(void);
void clients_act(void);          /* run the actions that are due */
int64_t clients_next(void);      /* the time of the next action */
int clients_give_up(void);       /* those that only wait are reset. Returns how many */
void client_at(struct client *c, enum action what, int64_t time);
void client_has_room(struct client *c);
void client_acknowledge(struct client *c);
void client_lose(struct client *c); /* the server resets the connection */
extern struct client *queue[CLIENTS_MAX];
extern int queued, queue_open;

ssize_t conn_receive(struct client *c, void *data, size_t n);
ssize_t conn_peek(struct client *c, void *data, size_t n);
ssize_t conn_send(struct client *c, const unsigned char *first, size_t n, const unsigned char *second, size_t m);
int conn_shutdown(struct client *c);
void conn_close(struct client *c);
short conn_events(const struct client *c);
int conn_error(struct client *c);
int conn_has_ended(const struct client *c); /* no more will arrive */

/* ---- descriptors */

enum kind { NO_FILE, LISTENER, CONN, PIPE_READER, PIPE_WRITER, EPOLL };

struct pipe {
    int readers, writers;
    size_t size, held;
    char *data;
};

struct file {
    enum kind kind;
    int refs, is_nonblocking;
    struct client *client;
    struct pipe *pipe;
};

struct watch {
    int fd;
    struct file *file; /* NULL: unused */
    uint32_t events;
    uint64_t data;
    int missed;
};
extern struct watch watches[WATCHES];
extern int watch_top;

void files_begin(void);
int files_left(void);
int file_open(enum kind kind, struct client *c, struct pipe *p); /* the descriptor */
struct file *file_of(int fd, const char *call);                  /* breaks if it is not open */
int file_close(int fd);
int file_duplicate(int fd);
short file_events(const struct file *f);
int pipe_open(int *ends, int nonblocking);
int pipe_resize(struct file *f, size_t n);
ssize_t pipe_read(struct file *f, void *data, size_t n);
ssize_t pipe_write(struct file *f, const void *data, size_t n);
ssize_t files_splice(struct file *from, struct file *to, size_t n);

/* ---- the schedule */

extern int64_t now, late; /* the time; how much of it was spent by calls, or was lost by delays */
extern int history_on;
extern int stop_asked;
extern int64_t stop_asked_at;
extern __thread int this_thread;

int call_begin(void);                          /* of each modelled call: time passes. Returns 0 */
void wait_for(int (*is_ready)(void *), void *what, int64_t until); /* until it is ready, interrupted, or `until` */
int interrupted(void);                         /* whether a signal has ended the wait of this thread */
void freeze(void);
int happens(int rate);
uint64_t below(uint64_t n); /* a random number from 0 to n - 1 */
void note(const char *format, int64_t a, int64_t b, int64_t c);
void broken(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
int fails(int err); /* set errno and return -1 */

/* ---- rules */

extern int64_t turn_at;  /* the time as the loop knows it: that of its first look at the clock after a wait */
extern int is_turn_new;
extern uint64_t moved;
struct counts { int64_t accepted, refused, closed, errors, bytes_in, bytes_out, lines, ended, resets, idle, left, unsure; };
extern struct counts counts;

void rules_begin(void);
void rule_begins(struct client *c);     /* the loop begins to serve it */
void rule_progress(struct client *c);
void rule_acknowledged(struct client *c);
void rule_received(struct client *c, size_t n);
void rule_before_receive(struct client *c);
void rule_send(struct client *c, const unsigned char *data, size_t at, size_t n);
void rule_told_end(struct client *c);
void rule_sent(struct client *c, size_t n);
void rule_shutdown(struct client *c);
void rule_close(struct client *c);
void rule_accept(struct client *c);
void rule_queue_closed(void);
void rule_wait(const struct watch *w, int n);
void rule_waited(int found, int timeout, int64_t waited);
void rule_end(void);

int64_t slack(int64_t late_before); /* the time that is allowed in addition to a deadline */

/* ---- memory */

void memory_begin(void);
void memory_received(struct client *c, size_t n);
void memory_sent(struct client *c, size_t n);
void memory_closed(const struct client *c);
int is_memory_short(void);
int may_send_part(const struct client *c);
int may_drop_part(const struct client *c);
int may_be_unwatched(struct client *c);

/* ---- waits */

struct pollfd;
struct epoll_event;
int wait_poll(struct pollfd *fds, size_t n, int milliseconds);
int wait_epoll(struct epoll_event *events, int most, int milliseconds);
int wait_nothing(int64_t ns);
int watch_change(int what, int fd, struct epoll_event *event);

#endif
