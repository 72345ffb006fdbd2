"""How a score and its 95 % interval are written, in every table and on the page: in per cent, ranks as they are."""

from __future__ import annotations

from typing import Final

from clipbench.protocols import registry

#: an interval that is further from symmetric than this share of its width is written by its ends
SKEWED: Final = 0.1


def is_rank(metric: str | None) -> bool:
    """Whether a metric counts from 1, where the others are shares."""
    return metric is not None and registry.metric(metric).unit == "rank"


def number(value: float, metric: str | None, sign: str = "") -> str:
    """One value; sign "+" for differences.

    >>> number(0.6336, "acc1"), number(12.25, "text_retrieval_mean_rank"), number(0.02, "acc1", "+")
    ('63.36', '12.2', '+2.00')
    """
    return f"{value:{sign},.1f}" if is_rank(metric) else f"{100 * value:{sign}.2f}"


def ends(low: float, high: float, metric: str | None, sign: str = "") -> str:
    """Both ends of an interval.

    >>> ends(0.957, 0.9886, "acc1"), ends(-0.03, 0.01, "acc1", "+")
    ('95.70 … 98.86', '-3.00 … +1.00')
    """
    return f"{number(low, metric, sign)} … {number(high, metric, sign)}"


def interval(value: float, low: float, high: float, metric: str | None) -> str:
    """What stands beside a value: ± half its width, or both ends.

    The ends, where half the width would mislead: the value lies further from the middle than a tenth of the width
    allows (`SKEWED`), or an end is one that the metric cannot pass: 0 or 1, of ranks 1.

    >>> interval(0.6336, 0.6294, 0.6378, "acc1"), interval(0.9778, 0.957, 0.9886, "acc1"), interval(0, 0, 0.1, "acc1")
    ('±0.42', '(95.70 … 98.86)', '(0.00 … 10.00)')
    """
    rank = is_rank(metric)
    skewed = abs((high - value) - (value - low)) > SKEWED * (high - low) + 1e-12
    if skewed or (low <= 1 if rank else low <= 0 or high >= 1):
        return f"({ends(low, high, metric)})"
    return f"±{number((high - low) / 2, metric)}"
