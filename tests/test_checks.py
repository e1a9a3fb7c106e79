"""Ranges of settings."""

from dataclasses import dataclass

import pytest

from usvar import checks
from usvar.errors import InputError


@pytest.mark.parametrize(
    ("wanted", "fitting", "others"),
    [
        ("1 or more", (1, 7), (0, -1)),
        ("above 0", (1e-9, 3.0), (0, -0.5, float("nan"), float("inf"))),
        ("0 to 1", (0, 0.5, 1), (-0.1, 1.1, float("nan"))),
        ("0 to below 1", (0, 0.99), (1.0, -0.1)),
        ("32 to 1024", (32, 1024), (31, 1025)),
    ],
)
def test_numbers_out_of_range_are_refused(wanted, fitting, others):
    @dataclass
    class Numbers:
        some_rate: object

    for number in (*fitting, None, fitting, ()):
        checks.require(Numbers(number), wanted, "some_rate")
    for number in others:
        for value in (number, (fitting[0], number)):
            with pytest.raises(InputError, match=f"^--some-rate {number} was given, wanted {wanted}$"):
                checks.require(Numbers(value), wanted, "some_rate")


def test_a_flag_is_written_as_it_is_typed():
    assert [checks.flag(name) for name in ("seed", "data_root")] == ["--seed", "--data-root"]
