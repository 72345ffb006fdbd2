"""The protocols that there are, and the metrics that they report, each by its name."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

from clipbench import protocols
from clipbench.errors import ClipbenchError
from clipbench.protocols.base import MetricSpec, Protocol
from clipbench.utils import plugins


def protocol_ids() -> list[str]:
    """Ids of all protocols."""
    return sorted(_all().protocols)


def protocol(name: str) -> Protocol[Any]:
    """The protocol with the id `name`, which must be one of `protocol_ids`."""
    return _all().protocols[name]


def metric(name: str) -> MetricSpec:
    """What is known of a metric; of one that no protocol here reports, that it is a share of 1.

    >>> metric("text_retrieval_mean_rank").less_is_better, metric("acc1").elsewhere["CLIP_benchmark"]
    (True, 'acc1')
    """
    return _all().metrics.get(re.sub(r"@\d+", "@*", name), MetricSpec(name, "not known"))


class _Known(NamedTuple):
    """Protocols by their ids, and metrics by their names."""

    protocols: dict[str, Protocol[Any]]
    metrics: dict[str, MetricSpec]


def _all() -> _Known:
    """What the modules that there are now bring, those of a plugin folder that has just been named too."""
    return _of(tuple(plugins.modules("protocols", protocols, besides=("base", "registry")).values()))


@cache
def _of(modules: tuple[plugins.Found, ...]) -> _Known:
    known = _Known({}, {})
    for found in modules:
        one = getattr(found.load(), "PROTOCOL", None)
        if not isinstance(one, Protocol):
            raise ClipbenchError(
                f"{found.where} is no protocol: it has no PROTOCOL",
                hint="write PROTOCOL = Protocol(id=…, version=1, …), of clipbench.protocols.base",
            )
        if known.protocols.setdefault(one.id, one) is not one:
            raise ClipbenchError(
                f'{found.where}: another protocol has the id "{one.id}"', hint="give it its own"
            )
        for spec in one.metrics:
            if known.metrics.setdefault(spec.name, spec) != spec:
                raise ClipbenchError(
                    f'{found.where}: the metric "{spec.name}" is another protocol\'s too, and something else there',
                    hint="report the same MetricSpec, or call it otherwise",
                )
    return known
