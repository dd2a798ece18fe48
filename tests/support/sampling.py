"""The selection of cases of a test with several parameters for the default run. ``pytest -m ""`` runs all cases.

Two parameters of five values make 25 cases, but a failure nearly always depends on one value, not on a pair. So the
default run selects a few cases in which each value of each parameter occurs, including the parameters of fixtures, and
marks the others as slow. A list of tuples for several names is one parameter, so all its tuples occur.

Cases that are marked as slow, ``pytest.param("pty", marks=pytest.mark.slow)``, are never selected. A test with long
cases limits the number of selected ones to two with ``@pytest.mark.sampled(2)``. The choice depends on its name, so
that tests with the same parameters, for example the engines, run different cases.
"""

from collections import defaultdict
from zlib import crc32

import pytest


def covering(cases):
    """Return the positions of a few sets whose union is that of all sets (greedy set cover)."""
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
    """Return a key that identifies a value: the value itself if it is hashable."""
    try:
        hash(value)
    except (TypeError, ValueError):
        return repr(value)
    return type(value), value


def parameters(case):
    """Return the parameters of a case with their values. Names that are parametrised together are one parameter."""
    left = dict(case.callspec.params)
    found = set()
    for marker in case.iter_markers("parametrize"):
        names = marker.args[0]
        names = names.replace(",", " ").split() if isinstance(names, str) else names
        found.add((tuple(names), tuple(identity(left.pop(name)) for name in names)))
    return found | {(name, identity(value)) for name, value in left.items()}


def mark_the_rest_slow(items):
    """Mark the cases that are not selected as slow."""
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
