"""The boundary around the user's functions: their file and line, and nothing of ours."""

import json

import pytest

from mulle.core.errors import SpecError, UserCodeError
from mulle.core.user_code import bounded, user_code


def _broken():
    return 1 // 0


def test_an_exception_becomes_an_error_with_file_and_line(tmp_path):
    """The innermost line of the user's own file is named, relative to the project."""
    (tmp_path / "project.py").write_text("def source():\n    return {}['요금']\n", encoding="utf-8")
    names = {}
    exec(compile((tmp_path / "project.py").read_text(encoding="utf-8"), str(tmp_path / "project.py"), "exec"), names)  # noqa: S102
    with pytest.raises(UserCodeError) as caught, user_code("the source 'source'", root=tmp_path):
        names["source"]()

    assert (caught.value.code, caught.value.where) == ("user-code", "project.py:2")


def test_a_library_frame_is_not_the_users_line():
    """An exception raised deep in the standard library points at the line that called it."""
    with pytest.raises(UserCodeError) as caught, user_code("the source"):
        json.loads("{")

    assert "test_user_code.py" in caught.value.where


def test_our_own_errors_pass_unchanged():
    """A SpecError already says what to do."""
    with pytest.raises(SpecError) as caught, user_code("anything"):
        raise SpecError("a-code", "what", fix="fix")

    assert caught.value.code == "a-code"


def test_an_exit_is_caught_and_an_interrupt_is_not():
    """A function that asks the process to exit is an error; Ctrl-C stays Ctrl-C."""
    with pytest.raises(UserCodeError), user_code("anything"):
        raise SystemExit(3)
    with pytest.raises(KeyboardInterrupt), user_code("anything"):
        raise KeyboardInterrupt


def test_long_messages_are_cut():
    """A megabyte of message stays one line."""
    assert [bounded("x" * 100, 10), bounded("a\n b", 10)] == ["x" * 9 + "…", "a b"]
