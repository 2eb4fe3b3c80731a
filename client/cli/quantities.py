"""Figures as people read them: one unit for all figures of a column, and words for single ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True)
class TimeUnit:
    """Unit of a table's durations."""

    name: str
    in_us: float
    decimals: int

    def of(self, us: float | None) -> str:
        """Return a duration in this unit, without its name.

        >>> MICROSECONDS.of(12.34), MILLISECONDS.of(3_411_810), MILLISECONDS.of(12.3), MICROSECONDS.of(None)
        ('12.3', '3,411.810', '0.012', '-')
        """
        return "-" if us is None else f"{us / self.in_us:,.{self.decimals}f}"


MICROSECONDS = TimeUnit("us", 1.0, 1)
MILLISECONDS = TimeUnit("ms", 1000.0, 3)
#: A table with a duration from here on is in milliseconds.
_LONG_US = 10_000.0


def time_unit(durations_us: Iterable[float | None]) -> TimeUnit:
    """Return the unit in which the longest of the durations is short to read.

    >>> time_unit([0.4, 9_999.0, None]).name, time_unit([0.4, 10_000.0]).name, time_unit([]).name
    ('us', 'ms', 'us')
    """
    longest = max((duration for duration in durations_us if duration is not None), default=0.0)
    return MILLISECONDS if longest >= _LONG_US else MICROSECONDS


def duration(seconds: float | None) -> str:
    """Return seconds in words, for a line of text.

    >>> duration(0.0042), duration(12.34), duration(3700), duration(None)
    ('4.2 ms', '12.3 s', '1 h 1 min', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds, for a column.

    >>> clock(3700.9), clock(5), clock(360_000)
    ('1:01:40', '0:00:05', '100:00:00')
    """
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def memory(size: int) -> str:
    """Return bytes in words, for a line of text.

    >>> memory(431_554_560), memory(150_754_820_096)
    ('412 MiB', '140.4 GiB')
    """
    return f"{size / _MIB:,.0f} MiB" if size < 1024 * _MIB else f"{size / _MIB / 1024:,.1f} GiB"


def percent(share: float) -> str:
    """Return a share of one in percent.

    >>> percent(0.634), percent(1.02), percent(0.0004)
    ('63 %', '102 %', '0 %')
    """
    return f"{share * 100:.0f} %"
