"""The constants that csapp.h defines itself, and two of the system's headers."""

from stat import S_IRGRP, S_IROTH, S_IRUSR, S_IWGRP, S_IWOTH, S_IWUSR

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
