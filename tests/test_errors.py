"""What is said of an error in a line of ours."""

from __future__ import annotations

from eigenexp.errors import first_line, one_line, summary


def test_an_error_is_said_in_one_line() -> None:
    error = ValueError("\n  the first\n  the second  ")
    assert one_line(error) == "the first the second"
    assert one_line(error, 9) == "the first"
    assert first_line(error) == "the first"
    assert summary(error) == "ValueError: the first"
    assert summary(error, whole=True) == "ValueError: the first the second"


def test_an_error_without_a_message_is_its_type() -> None:
    assert first_line(KeyboardInterrupt()) == summary(KeyboardInterrupt()) == "KeyboardInterrupt"
