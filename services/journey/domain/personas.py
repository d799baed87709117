"""Personas: what is told of customers, and whom a map is meant for."""

from collections.abc import Mapping, Sequence

from recorrido.journey.v1.events import JourneyMap, PersonaCondition

#: Attributes of an interaction that tell of the customer rather than of the moment.
CUSTOMER_PREFIX = "customer."
#: The attribute that a customer's kind is told by.
KIND = "kind"


def customer_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return what an interaction's attributes tell of the customer, by names without the prefix."""
    return {
        name.removeprefix(CUSTOMER_PREFIX): value
        for name, value in attributes.items()
        if name.startswith(CUSTOMER_PREFIX)
    }


def holds(condition: PersonaCondition, attributes: Mapping[str, str]) -> bool:
    """Return whether the attribute is known and one of the condition's values."""
    told = attributes.get(condition.attribute)
    return told is not None and any(_matches(value, told) for value in condition.values)


def persona_of(map_: JourneyMap, attributes: Mapping[str, str]) -> int:
    """Return the number, from 0, of the first persona whose conditions all hold; -1: none."""
    for number, persona in enumerate(map_.personas):
        if all(holds(condition, attributes) for condition in persona.conditions):
            return number
    return -1


def attributes_used(map_: JourneyMap) -> Sequence[str]:
    """Return the attributes that the map's personas ask for."""
    return sorted({condition.attribute for persona in map_.personas for condition in persona.conditions})


def covers(general: Sequence[PersonaCondition], special: Sequence[PersonaCondition]) -> bool:
    """Return whether whoever meets `special` meets `general` too, as far as their values tell."""
    return all(
        any(
            one.attribute == other.attribute
            and all(any(_covers(broad, narrow) for broad in one.values) for narrow in other.values)
            for other in special
        )
        for one in general
    )


def _matches(value: str, told: str) -> bool:
    return told.startswith(value[:-1]) if value.endswith("*") else told == value


def _covers(broad: str, narrow: str) -> bool:
    if broad.endswith("*"):
        return narrow.removesuffix("*").startswith(broad[:-1])
    return broad == narrow
