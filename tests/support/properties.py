"""Hypothesis, or a replacement that skips the tests that need it, for platforms where it cannot be installed."""

import os

import pytest

#: The number of examples of a property: fewer in the default run (conftest.py).
EXAMPLES = int(os.environ.get("RIOECHO_EXAMPLES", "400"))

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    # Tests must not fail because the machine is busy.
    settings.register_profile("suite", deadline=None, suppress_health_check=list(HealthCheck))
    settings.load_profile("suite")
except ModuleNotFoundError:

    class Nothing:
        """A stand-in for any strategy: every operation on it returns it."""

        def __getattr__(self, name):
            return self

        def __call__(self, *arguments, **options):
            return self

        def __or__(self, other):
            return self

        def __iter__(self):
            return iter(())

    st = HealthCheck = Nothing()

    def settings(**options):
        return lambda test: test

    def given(*strategies):
        def skipping(test):
            def skipped():
                pytest.skip("hypothesis is not installed")

            skipped.__name__ = test.__name__
            skipped.__module__ = test.__module__
            return skipped

        return skipping


__all__ = ["EXAMPLES", "HealthCheck", "given", "settings", "st"]
