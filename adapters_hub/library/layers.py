"""Which layer of a backbone a path means, read from the path alone."""

from collections.abc import Iterable


def layer_of(site: str) -> str | None:
    """The layer a site is in: its path down to the first whole number, None if there is none.

    ``encoder.block.0.layer.1.wi`` is in ``encoder.block.0``: each stack counts its layers from 0.
    """
    parts = site.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return None if number is None else ".".join(parts[: number + 1])


def layers_of(sites: Iterable[str]) -> tuple[str, ...]:
    """The layers of a backbone in the order of its sites, stack after stack."""
    return tuple(dict.fromkeys(layer for site in sites if (layer := layer_of(site)) is not None))
