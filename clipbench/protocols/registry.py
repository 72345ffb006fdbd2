"""The protocols that there are, and the metrics that they report, each by its name."""

from __future__ import annotations

import re
from typing import Any

from clipbench import protocols
from clipbench.errors import ClipbenchError
from clipbench.protocols.base import MetricSpec, Protocol
from clipbench.utils import plugins

_known: dict[str, Protocol[Any]] = {}
_specs: dict[str, MetricSpec] = {}


def protocol_ids() -> list[str]:
    """Ids of all protocols."""
    return sorted(_all())


def protocol(name: str) -> Protocol[Any]:
    """The protocol with the id `name`, which must be one of `protocol_ids`."""
    return _all()[name]


def metric(name: str) -> MetricSpec:
    """What is known of a metric; of one that no protocol here reports, that it is a share of 1.

    >>> metric("text_retrieval_mean_rank").less_is_better, metric("acc1").elsewhere["CLIP_benchmark"]
    (True, 'acc1')
    """
    _all()
    return _specs.get(re.sub(r"@\d+", "@*", name), MetricSpec(name, "not known"))


def _all() -> dict[str, Protocol[Any]]:
    """Every protocol by its id. A module that came after the last look, as in a plugin folder, is found too."""
    modules = plugins.modules("protocols", protocols, besides=("base", "registry"))
    if len(modules) == len(_loaded):
        return _known
    for name, found in modules.items():
        if found.module in _loaded:
            continue
        one = getattr(found.load(), "PROTOCOL", None)
        if not isinstance(one, Protocol):
            raise ClipbenchError(
                f"{found.where} is no protocol: it has no PROTOCOL",
                hint="write PROTOCOL = Protocol(id=…, version=1, …), of clipbench.protocols.base",
            )
        if one.id in _known:
            raise ClipbenchError(
                f'{found.where}: another protocol has the id "{one.id}"', hint="give it its own"
            )
        _loaded[found.module] = name
        _known[one.id] = one
        for spec in one.metrics:
            same = _specs.setdefault(spec.name, spec)
            if same != spec:
                raise ClipbenchError(
                    f'{found.where}: the metric "{spec.name}" is another protocol\'s too, and something else there',
                    hint="report the same MetricSpec, or call it otherwise",
                )
    return _known


_loaded: dict[str, str] = {}
