"""Plans of load tests: valid targets, and error messages that name the wrong value."""

import dataclasses
import math

import pytest

from rioecho._load.plan import parse_target
from rioecho.bench import Plan


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:8000", ("localhost", 8000)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("unix:/run/echo", ("/run/echo",)),
        ("unix:echo:1", ("echo:1",)),
        ("unix:8000", ("unix", 8000)),
        ("unix:./8000", ("./8000",)),
    ],
)
def test_a_target_is_a_host_and_port_or_a_path(text, expected):
    assert parse_target(text) == expected
    assert Plan(text).target == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "localhost", "localhost:", ":8000", "[]:8000", "::1:8000", "a\0b:8", "unix:", "unix:a\0b"),
        *("a:0", "a:65536", "a:-1", "a:http", "a: 8", "a:\u0668", "a:" + 5000 * "9"),
    ],
)
def test_an_invalid_target_is_refused(text):
    with pytest.raises(ValueError, match="target"):
        Plan(text)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("connections", 0, ValueError),
        ("connections", -1, ValueError),
        ("connections", 1.5, TypeError),
        ("connections", 10**9, ValueError),
        ("message_bytes", 0, ValueError),
        ("message_bytes", 1 << 40, ValueError),
        ("pipeline", 0, ValueError),
        ("pipeline", 1 << 30, ValueError),
        ("threads", 0, ValueError),
        ("threads", 51, ValueError),
        ("rate", 0, ValueError),
        ("rate", -5.0, ValueError),
        ("rate", 1e-7, ValueError),
        ("rate", 5e-324, ValueError),
        ("rate", math.inf, ValueError),
        ("rate", math.nan, ValueError),
        ("rate", "fast", TypeError),
        ("duration", 0, ValueError),
        ("duration", math.inf, ValueError),
        ("duration", None, TypeError),
        ("warmup", -0.1, ValueError),
        ("warmup", math.nan, ValueError),
        ("stall_timeout", 0, ValueError),
        ("connect_timeout", 0, ValueError),
        ("target", 8000, TypeError),
        ("target", None, TypeError),
        *((name, True, TypeError) for name in ("connections", "pipeline", "threads", "rate", "duration", "warmup")),
        ("reconnect", 5, TypeError),
        ("reconnect", "no", TypeError),
        ("reconnect", None, TypeError),
    ],
)
def test_an_error_names_the_wrong_value(name, value, error):
    with pytest.raises(error, match=name):
        Plan(**({"target": "localhost:8000"} | {name: value}))


def test_a_plan_is_frozen_and_limits_the_warm_up_to_the_duration():
    plan = Plan("localhost:8000", duration=0.5)
    assert (plan.warmup, plan.warmup_s) == (1.0, 0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.duration = 3


def test_the_pipeline_is_limited_to_what_a_load_loop_accepts():
    assert Plan("localhost:8000", connections=4, pipeline=1 << 20).pipeline == 1 << 20
    with pytest.raises(ValueError, match="pipeline must be 1 to 1048576"):
        Plan("localhost:8000", connections=1, pipeline=(1 << 20) + 1)
