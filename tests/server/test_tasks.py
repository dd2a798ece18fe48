"""Calls in new threads: the end is reported in any case, and the caller does not wait for the beginning."""

import queue
import signal
import sys
import threading
import time

import pytest

from rioecho._server.notify import Latch, Stop, WakePipe
from rioecho._server.tasks import Task, WaitGroup
from support.peers import SECONDS, Running
from support.sweep import require_failing_allocations


def test_a_task_is_called_once_in_a_thread_with_its_name():
    called = []
    ended = Latch()
    task = Task(
        lambda *args: called.append((args, threading.current_thread().name)), 1, 2, name="one", latches=(ended,)
    )
    assert task.start()
    assert not task.start()
    assert ended.wait(SECONDS)
    assert called == [((1, 2), "one")]


def test_ended_threads_are_no_longer_listed():
    before = set(threading.enumerate())
    group = WaitGroup()
    for i in range(20):
        Task(threading.current_thread, name=f"task {i}", group=group).start()
    group.close()
    assert group.wait(SECONDS)
    assert set(threading.enumerate()) == before


def test_waiting_for_a_group_ends_at_the_timeout():
    group, gate = WaitGroup(), Latch()
    Task(gate.wait, name="waits", group=group).start()
    group.close()
    start = time.monotonic()
    assert not group.wait(0.05)
    assert 0.05 <= time.monotonic() - start < SECONDS
    gate.open()
    assert group.wait(SECONDS)


def test_a_cancelled_task_is_never_called_and_has_ended():
    ended, group = Latch(), WaitGroup()
    task = Task(pytest.fail, name="never", group=group, latches=(ended,))
    assert task.cancel()
    assert not task.cancel()
    assert not task.start()
    assert not task.begin()
    assert ended.is_open
    group.close()
    assert group.wait(0)


def test_an_exception_ends_the_task_and_is_reported(monkeypatch):
    def fails():
        raise OSError("no")

    reported = queue.SimpleQueue()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.put(unraisable.exc_type))
    group = WaitGroup()
    Task(fails, name="fails", group=group).start()
    group.close()
    assert group.wait(SECONDS)
    assert reported.get(timeout=SECONDS) is OSError


def test_a_task_ends_whichever_allocation_fails(child):
    """threading.Thread.start() would block indefinitely if the new thread had no memory to begin."""
    require_failing_allocations()
    printed = child("""if True:
        import _testcapi, sys
        from rioecho._server.notify import Latch
        from rioecho._server.tasks import Task, WaitGroup
        sys.unraisablehook = lambda unraisable: None   # of a thread that never made its call
        calls = begun = refused = 0
        def call():
            global calls
            calls += 1
        for k in range(60):
            group, ended = WaitGroup(), Latch()
            task = Task(call, name="x", group=group, latches=(ended,))
            before = calls
            failed = False
            _testcapi.set_nomemory(k, k + 1)
            while True:   # until the task has ended, because allocations of the thread are to fail as well
                try:
                    if not failed:
                        task.start()
                    group.close()
                    group.wait(30)
                    break
                except (MemoryError, RuntimeError):
                    failed = failed or ended.is_open
            _testcapi.remove_mem_hooks()
            assert group.wait(0)
            assert ended.is_open
            assert calls - before <= 1
            refused += failed
            begun += not failed
        print(calls, begun, refused)
        """)
    calls, begun, refused = map(int, printed.split())
    assert refused
    assert begun >= calls >= 20  # well past the last allocation


def test_signals_go_to_the_main_thread(on_alarm):
    """A signal delivered to a thread that begins, works or ends would not interrupt the wait of the main thread."""
    handled = []
    masks = []
    group = WaitGroup()
    for _ in range(10):
        Task(lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])), name="asks", group=group).start()
    group.close()
    assert group.wait(SECONDS)
    for mask in masks:
        assert {signal.SIGTERM, signal.SIGINT, signal.SIGALRM} <= mask
        assert signal.SIGSEGV not in mask
    latch = Latch()
    on_alarm(lambda number, frame: (handled.append(number), latch.open()), 0.01)
    assert latch.wait(SECONDS)
    assert handled


def test_a_latch_releases_all_waiting_threads():
    latch = Latch()
    waiting = [Running(latch.wait) for _ in range(20)]
    assert not latch.wait(0.01)
    assert latch.open()
    assert not latch.open()
    for each in waiting:
        each.result()
    assert latch.wait()


def test_a_handler_that_raises_during_a_wait_leaves_the_latch_unchanged(alarm):
    latch = Latch()
    alarm(0.01)
    with pytest.raises(alarm.error):
        latch.wait()
    assert not latch.is_open
    assert latch.open()
    assert latch.wait(SECONDS)


def test_a_wake_pipe_wakes_drops_and_closes():
    pipe, stop = WakePipe(armed=False), Stop(None)
    pipe.wake()
    start = time.monotonic()
    assert not stop.pause(pipe, 0.02)
    assert time.monotonic() - start >= 0.02
    pipe.arm(True)
    for _ in range(100_000):  # more than the pipe holds: wake() does not block
        pipe.wake()
    assert not stop.pause(pipe, SECONDS)
    pipe.close()
    pipe.wake()
    pipe.close()
    assert pipe.fd == -1
    stop.close()


def test_without_a_descriptor_there_is_no_wake_pipe(few_descriptors):
    with few_descriptors(1), pytest.raises(OSError, match="Too many open files"):
        WakePipe()
    WakePipe().close()


def test_a_stop_is_over_at_the_drain_deadline():
    stop, pipe = Stop(0.05), WakePipe()
    assert not stop.requested
    assert not stop.is_over
    assert stop.time_left() == 0.05
    start = time.monotonic()
    stop.request()
    stop.request()
    assert stop.requested
    while not stop.is_over:
        stop.pause(pipe, SECONDS, True)
    assert 0.05 <= time.monotonic() - start < SECONDS
    assert stop.time_left() == 0
    assert 0 < stop.time_left(SECONDS) <= SECONDS
    stop.close()
    pipe.close()


def test_a_stop_without_a_deadline_is_never_over():
    stop = Stop(None)
    stop.request()
    assert not stop.is_over
    assert stop.time_left(1.0) is None
    stop.close()
