"""Query and manipulate a file's st_mode bits: statcheck.c, 10.6."""

import sys

from rioecho.csapp import *


def main(argv):
    stat = Stat(argv[1])
    if S_ISREG(stat.st_mode):  # determine file type
        type = "regular"
    elif S_ISDIR(stat.st_mode):
        type = "directory"
    else:
        type = "other"
    if stat.st_mode & S_IRUSR:  # check read access
        readok = "yes"
    else:
        readok = "no"

    print(f"type: {type}, read: {readok}")
    exit(0)


main(sys.argv)
