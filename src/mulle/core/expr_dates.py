"""Calendar arithmetic on seconds since 1970-01-01 UTC, in operators that are exact in float64.

Days are counted from 1 March of year 0 of the proleptic Gregorian calendar, in cycles of 400 years (146,097 days): a
leap day is then the last day of a counted year, and no table is needed. All quotients are of whole numbers below 2^52,
for which float64 division followed by `floor` is exact. Times are UTC: a time zone belongs into the source.
"""

from collections.abc import Callable

from mulle.core.expr_typed import Typed, add, div, floor, floor_div, less, less_equal, modulo, mul, number, sub, to_number, when

DAY_S = 86_400.0
_DAYS_BEFORE_1970 = 719_468.0
_CYCLE_DAYS = 146_097.0
_MARCH_MONTHS = 10.0


def day_number(t: Typed) -> Typed:
    """Return whole days since 1970-01-01, rounded down."""
    return floor_div(t, number(DAY_S))


def year(t: Typed) -> Typed:
    """Return the year."""
    cycle, _, year_of_cycle = _cycle(t)
    counted = add(year_of_cycle, mul(cycle, number(400)))
    return add(counted, to_number(less_equal(month(t), number(2))))


def month(t: Typed) -> Typed:
    """Return the month, 1 to 12."""
    from_march = _month_from_march(t)
    return when(less(from_march, number(_MARCH_MONTHS)), add(from_march, number(3)), sub(from_march, number(9)))


def day(t: Typed) -> Typed:
    """Return the day of the month, 1 to 31."""
    first = floor_div(add(mul(number(153), _month_from_march(t)), number(2)), number(5))
    return add(sub(_day_of_year(t), first), number(1))


def weekday(t: Typed) -> Typed:
    """Return the day of the week after ISO 8601: Monday 1 to Sunday 7."""
    return add(modulo(add(day_number(t), number(3)), number(7)), number(1))


def hour(t: Typed) -> Typed:
    """Return the hour, 0 to 23."""
    return floor_div(_second_of_day(t), number(3600))


def minute(t: Typed) -> Typed:
    """Return the minute, 0 to 59."""
    return floor_div(sub(_second_of_day(t), mul(hour(t), number(3600))), number(60))


def days_between(a: Typed, b: Typed) -> Typed:
    """Return the days from b to a, with fractions; negative when a is earlier."""
    return div(sub(a, b), number(DAY_S))


PARTS: dict[str, Callable[[Typed], Typed]] = {"year": year, "month": month, "day": day, "weekday": weekday, "hour": hour, "minute": minute}


def _second_of_day(t: Typed) -> Typed:
    return sub(t, mul(day_number(t), number(DAY_S)))


def _cycle(t: Typed) -> tuple[Typed, Typed, Typed]:
    """Return the 400-year cycle, the day within it (0 to 146,096) and the year within it (0 to 399)."""
    days = add(day_number(t), number(_DAYS_BEFORE_1970))
    cycle = floor_div(days, number(_CYCLE_DAYS))
    day_of_cycle = sub(days, mul(cycle, number(_CYCLE_DAYS)))
    # Leap days so far are taken out, after which every year has 365 days.
    without = sub(day_of_cycle, floor_div(day_of_cycle, number(1460)))
    without = add(without, floor_div(day_of_cycle, number(36_524)))
    without = sub(without, floor_div(day_of_cycle, number(146_096)))
    return cycle, day_of_cycle, floor_div(without, number(365))


def _day_of_year(t: Typed) -> Typed:
    _, day_of_cycle, y = _cycle(t)
    before = sub(add(mul(number(365), y), floor(div(y, number(4)))), floor(div(y, number(100))))
    return sub(day_of_cycle, before)


def _month_from_march(t: Typed) -> Typed:
    return floor_div(add(mul(number(5), _day_of_year(t)), number(2)), number(153))
