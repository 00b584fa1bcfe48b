"""All properties, in the order in which they are tried: each after those that it needs."""

from __future__ import annotations

from graphlib import TopologicalSorter

from pyllm2.conform import properties_chat, properties_flags, properties_model, properties_text
from pyllm2.conform.property import Property

_LISTED = (
    *properties_model.PROPERTIES,
    *properties_text.PROPERTIES,
    *properties_flags.PROPERTIES,
    *properties_chat.PROPERTIES,
)
BY_NAME = {found.name: found for found in _LISTED}


def _ordered() -> tuple[Property, ...]:
    """As listed, but a property waits for what it needs."""
    place = {name: i for i, name in enumerate(BY_NAME)}
    sorter = TopologicalSorter({found.name: found.needs for found in _LISTED})
    sorter.prepare()
    ready: list[str] = []
    order: list[Property] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
        first = ready.pop(0)
        order.append(BY_NAME[first])
        sorter.done(first)
    return tuple(order)


PROPERTIES = _ordered()
