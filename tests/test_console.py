"""Numbers are printed with the digits that are known, and no other."""

from __future__ import annotations

import logging
import math
import random
import re
from decimal import Decimal

import pytest

from eigenexp.console import PlainFormatter, at_least, at_most, known_digits
from eigenexp.errors import first_line, one_line


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.91e-6, 1.2e-7, "3.9(2)e-06"),
        (1.0293024, 1e-4, "1.0293(2)"),
        (1.0293024, 1e-15, "1.029302"),
        (1.0293024, 0.0, "1.029302"),
        (4.0, 1e-9, "4.000000"),
        (4.0, 0.0, "4"),
        (0.0579859, 1.6e-8, "0.05798590(2)"),
        (9.996, 0.002, "9.996(2)"),
        (99.99, 0.3, "100.0(4)"),
        (130_000.0, 2_000.0, "1.30(2)e+05"),
        (123_456.0, 3.0, "123456(3)"),
        (3.0, 1.0, "3(1)"),
        (0.0, 0.0, "0"),
        (0.0, 1e-9, "≤ 1e-09"),
        (1e-6, 1e-6, "≤ 2e-06"),
        (2.6e-34, 1.1e-12, "≤ 1.2e-12"),
        (5.25, math.inf, "≈ 5.2"),
        (math.inf, 0.0, "∞"),
        (math.nan, 0.0, "unknown"),
    ],
)
def test_a_number_has_the_digits_of_its_bound(value: float, error: float, text: str) -> None:
    assert known_digits(value, error) == text


def test_of_a_number_without_a_bound_a_ceiling_may_be_known() -> None:
    assert known_digits(3.14e-6, math.inf, is_ceiling=True) == "≤ 3.2e-06"
    assert known_digits(3.14e-6, math.nan, is_ceiling=True) == "≤ 3.2e-06"
    assert known_digits(3.14e-6, 1e-8, is_ceiling=True) == "3.14(1)e-06"


def test_limits_are_rounded_to_the_safe_side() -> None:
    assert (at_most(1.21), at_most(0.0), at_most(119.0)) == ("≤ 1.3", "≤ 0", "≤ 1.2e+02")
    assert (at_least(31.99), at_least(1e5)) == ("≥ 31", "≥ 1e+05")


def test_what_is_printed_holds_all_that_the_bound_allows() -> None:
    draw = random.Random(0)
    for _ in range(5_000):
        value = 10 ** draw.uniform(-12, 8)
        error = value * 10 ** draw.uniform(-16, 0.5)
        text = known_digits(value, error)
        if text.startswith("≤ "):
            assert (value + error) * (1 - 1e-15) <= float(text[2:]) <= 1.11 * (value + error)
            continue
        parts = re.fullmatch(r"([\d.]+)(?:\((\d)\))?(?:e([+-]\d\d))?", text)
        assert parts is not None, text
        digits, last, power = parts.groups()
        size = Decimal(1).scaleb(int(power or 0))
        reach = int(last or 1) * size.scaleb(-len(digits.partition(".")[2]))
        exact, off = Decimal(repr(value)), Decimal(repr(error))
        assert abs(Decimal(digits) * size - exact) + off <= reach
        assert reach <= 4 * Decimal(error) + Decimal(value) * Decimal("1e-6")  # and little more


def test_escapes_in_what_libraries_log_are_shown_and_not_obeyed() -> None:
    record = logging.LogRecord("x", 30, "f", 1, "a\x1b[31mb\nc\x9b2Jd\r", (), None)
    assert PlainFormatter("%(message)s").format(record) == "a?[31mb\nc?2Jd"


def test_what_a_library_says_is_one_line_without_escapes() -> None:
    for shorten in (one_line, first_line):
        assert shorten("\x1b[1mdo those\x1b[0m steps\x07") == "do those steps"
