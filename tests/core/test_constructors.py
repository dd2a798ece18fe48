"""The constructors of all classes in C: one that fails closes nothing."""

import pytest

#: Calls each class with arguments that it refuses, and prints how many calls that were. An object of C whose arguments
#: are refused is freed, and is all zeros: a field that is 0 then is no descriptor.
REFUSED = """if True:
    import contextlib, gc, importlib, inspect, os, pkgutil
    import rioecho

    names = [each.name for each in pkgutil.walk_packages(rioecho.__path__, "rioecho.") if "__main__" not in each.name]
    with contextlib.suppress(ImportError):
        import pytest  # of rioecho.testing
    before = os.listdir("/proc/self/fd")
    called = 0
    for name in names:
        module = importlib.import_module(name)
        if not module.__file__.endswith(".so"):
            continue
        for kind in [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == name]:
            for arguments, named in [((), {}), ((object(),), {}), ((None,) * 3, {}), ((), {"none": 1})]:
                called += 1
                with contextlib.suppress(Exception):
                    kind(*arguments, **named)
                gc.collect()
                assert os.listdir("/proc/self/fd") == before, (kind, arguments, named)
    print(called)
"""


@pytest.mark.long
def test_a_constructor_that_refuses_its_arguments_closes_no_descriptor(child):
    assert int(child(REFUSED)) > 100
