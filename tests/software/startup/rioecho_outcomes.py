"""A pytest plugin that writes the outcome of each test of a suite, one JSON list a line, for run.py.

Each line is written when it is known, so that those of a process that dies are kept: the test that was running has
only its "started". RIOECHO_OUTCOMES is the path of the file. If RIOECHO_ONLY is set, it is the path of a JSON list of
the ids of the tests to run; all others are deselected.
"""

import asyncio
import json
import os
import socket

import pytest

import rioecho
from rioecho.aio import streams

_open, _write, _close = os.open, os.write, os.close  # a test may replace those of os
_path = os.environ["RIOECHO_OUTCOMES"]


def _record(test, outcome):
    fd = _open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        _write(fd, (json.dumps([test, outcome]) + "\n").encode())
    finally:
        _close(fd)


def _check_files(when):
    drop_in = os.environ.get("RIOECHO_DROP_IN", "makefile")
    if drop_in == "makefile":
        name, swapped = "socket.socket.makefile", socket.socket.makefile is rioecho.makefile
    else:
        name, swapped = "asyncio.StreamReader", asyncio.StreamReader is streams.StreamReader
    if swapped != (os.environ["RIOECHO_FILES"] == "rioecho"):
        pytest.exit(f"{name} is not the one of this run at its {when}", returncode=99)


def pytest_sessionstart(session):
    _check_files("start")
    support = os.environ.get("RIOECHO_STDLIB")
    if support:  # the standard library's tests: without a network, without the tests that take long or much memory
        import test.support

        test.support.use_resources = []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    _check_files("end")


def pytest_collection_modifyitems(config, items):
    only = os.environ.get("RIOECHO_ONLY")
    if only:
        with open(only, encoding="utf-8") as file:
            wanted = set(json.load(file))
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]


def pytest_collectreport(report):
    if report.failed:
        _record(report.nodeid, "failed")


def pytest_runtest_logstart(nodeid, location):
    _record(nodeid, "started")


def pytest_runtest_logreport(report):
    if report.outcome == "rerun":  # of pytest-rerunfailures: a failure after which the test runs again
        return
    if report.when == "call" or report.outcome != "passed":
        _record(report.nodeid, report.outcome)
