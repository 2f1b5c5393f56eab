"""Catalogues as bytes, and the models of a catalogue as plain tuples."""

from __future__ import annotations

import json

from modelctl.catalog.parse import Catalog


def text(value: object) -> bytes:
    """Write one JSON document."""
    return json.dumps(value).encode()


def lines(*values: object) -> bytes:
    """Write JSON Lines."""
    return b"".join(text(value) + b"\n" for value in values)


def rows(catalog: Catalog) -> list[tuple[str, str, str]]:
    """Return the models as plain tuples, short to write in a table."""
    return [(model.id, model.display_name, model.provider) for model in catalog.models]
