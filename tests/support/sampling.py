"""Which cases of a test with several parameters run by default. The rest are slow: ``pytest -m ""`` runs them as well.

Two parameters of five values make 25 cases, and nearly always it is one value that fails, not a pair. So of a test's
cases the default run takes a few in which each value of each parameter occurs, those of fixtures included; a list of
tuples for several names at once is one parameter, and runs whole.

Cases that have the mark by themselves, ``pytest.param("pty", marks=pytest.mark.slow)``, are never among them. A test
whose cases are long says ``@pytest.mark.sampled(2)``: no more than two of these. Which ones depends on its name, so
that tests with the same parameters, the engines say, take different ones.
"""

from collections import defaultdict
from zlib import crc32

import pytest


def covering(cases):
    """Choose few of the sets so that their union is that of all: the positions, the first that adds most first."""
    numbers = defaultdict(lambda: len(numbers))
    cases = [{numbers[value] for value in case} for case in cases]
    missing = set(range(len(numbers)))
    chosen = []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(cases[i] & missing))
        chosen.append(best)
        missing -= cases[best]
    return chosen


def identity(value):
    """Return what tells a value from others: the value itself, if it can be a key."""
    try:
        hash(value)
    except (TypeError, ValueError):
        return repr(value)
    return type(value), value


def parameters(case):
    """Return the parameters of a case with their values: names that are given together are one parameter."""
    left = dict(case.callspec.params)
    found = set()
    for marker in case.iter_markers("parametrize"):
        names = marker.args[0]
        names = names.replace(",", " ").split() if isinstance(names, str) else names
        found.add((tuple(names), tuple(identity(left.pop(name)) for name in names)))
    return found | {(name, identity(value)) for name, value in left.items()}


def mark_the_rest_slow(items):
    """Mark as slow the cases that the default run leaves out."""
    tests = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            tests[item.path, item.originalname].append(item)
    for cases in tests.values():
        chosen = covering([parameters(case) for case in cases])
        if marker := cases[0].get_closest_marker("sampled"):
            start = crc32(cases[0].originalname.encode()) % len(chosen)
            chosen = (chosen[start:] + chosen[:start])[: marker.args[0]]
        for position in set(range(len(cases))).difference(chosen):
            cases[position].add_marker(pytest.mark.slow)
