"""The names of unix sockets on the command lines: paths, and @NAME for Linux's abstract names."""

import sys

import pytest

from rioecho._core.addresses import parse_path, shown_path

only_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has abstract names")


@only_linux
@pytest.mark.parametrize("name", ["@echo", "@a/b", "@@", "@\u00e9"])
def test_an_at_sign_stands_for_an_abstract_name(name):
    assert parse_path(name) == "\0" + name[1:]
    assert shown_path(parse_path(name)) == name


@pytest.mark.parametrize("path", ["/run/echo", "echo", "./@echo", "a@b", "8000"])
def test_anything_else_is_a_path(path):
    assert parse_path(path) == path
    assert shown_path(path) == path


@pytest.mark.parametrize("text", ["", "@"])
def test_an_empty_name_is_an_error(text):
    with pytest.raises(ValueError, match="not the path or the @NAME of a unix socket"):
        parse_path(text)


@pytest.mark.skipif(sys.platform.startswith("linux"), reason="Linux has abstract names")
def test_an_abstract_name_of_a_system_without_them_is_an_error():
    with pytest.raises(ValueError, match="for a file use"):
        parse_path("@echo")


def test_a_name_that_is_not_printable_is_quoted_in_messages():
    assert shown_path("/run/\n") == r"'/run/\n'"
    assert shown_path("\0a\n") == r"'@a\n'"
    assert shown_path("\0") == r"'\x00'"
