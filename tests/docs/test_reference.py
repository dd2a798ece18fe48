"""Every public name has an entry in the reference, and every entry a docstring to show."""

import functools
import importlib
import inspect
import re
import types
from pathlib import Path

import pytest

import rioecho

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
MODULES = (
    "rioecho",
    "rioecho.aio",
    "rioecho.aio.streams",
    "rioecho.bench",
    "rioecho.client",
    "rioecho.csapp",
    "rioecho.errors",
    "rioecho.server",
    "rioecho.testing",
)
DIRECTIVE = re.compile(r"^\.\. (?:py:)?(\w+):: +(\S+)\n((?:   +:.*\n)*)", re.MULTILINE)

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the source tree is not available")


def public(module):
    """Return the names that a module is imported for: those of ``__all__``, or its own classes and functions."""
    names = getattr(module, "__all__", None)
    return names or [name for name in vars(module) if name[0] != "_" and is_code(getattr(module, name), module)]


def is_code(value, module):
    return callable(value) and value.__module__.startswith(module.__name__)


def named(path):
    """Return what the dotted path of a directive names."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)


@functools.cache
def entries():
    """Return the objects that the pages have an entry for, with whether their members have."""
    found = {}
    for page in sorted(REFERENCE.glob("*.rst")):
        current = ""
        for kind, name, options in DIRECTIVE.findall(page.read_text()):
            members = ":members:" in options
            if kind in ("currentmodule", "module", "automodule"):
                current = "" if name == "None" else f"{name}."
                if kind == "automodule" and members:
                    module = named(name)
                    values = [getattr(module, each) for each in public(module)]
                    found.update((id(value), (value, True)) for value in values if callable(value))
            elif kind in ("autoclass", "autoexception", "autofunction", "class"):
                value = named(name if name.startswith("rioecho") else current + name)
                found[id(value)] = value, members
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_of_a_module_has_an_entry(name):
    module, found = importlib.import_module(name), entries()
    text = "".join(page.read_text() for page in REFERENCE.glob("*.rst"))
    for each in public(module):
        value = getattr(module, each)
        if isinstance(value, types.GenericAlias):
            assert re.search(rf"^\.\. data:: {each}$", text, re.MULTILINE), each
        elif callable(value):
            assert id(value) in found, each
        else:
            assert re.search(rf"``[^`]*\b{each}\b[^`]*``", text), each


def test_help_of_rio_begins_with_its_methods_by_group():
    groups = inspect.getdoc(rioecho.Rio).partition("``fd``\n")[0]
    named = set(re.findall(r"(\w+)\(\)", groups)) - {"rio"}
    methods = {name for name in dir(rioecho.Rio) if name[0] != "_" and callable(getattr(rioecho.Rio, name))}
    formal = {"fileno", "isatty", "readable", "readlines", "seek", "seekable", "tell", "truncate", "writable"}
    assert named == methods - formal


def test_every_entry_and_each_public_member_of_a_class_has_a_docstring():
    values = list(entries().values())
    assert len(values) > 100
    for value, members in values:
        assert inspect.getdoc(value), value
        if not inspect.isclass(value) or not members:
            continue
        for owner in value.__mro__:
            for name, member in vars(owner).items():
                if owner.__module__.startswith("rioecho") and name[0] != "_" and inspect.isroutine(member):
                    assert inspect.getdoc(member), f"{owner.__qualname__}.{name}"
