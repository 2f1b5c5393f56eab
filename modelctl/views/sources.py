"""Views of the sources of catalogues."""

from __future__ import annotations

from modelctl.views.view import View


def formats_view() -> View:
    """Return the view of the formats: who answers like that, what it looks like, an example."""
    from modelctl.catalog.formats import FORMATS

    formats = [
        {"format": name, "of": of.services, "shape": of.shape, "example": of.example}
        for name, of in FORMATS.items()
    ]
    columns = ("format", "of", "example")
    return View(
        document=formats,
        columns=columns,
        rows=[[of[name] for name in columns] for of in formats],
        items=formats,
        fields=("format", "of", "shape", "example"),
        name_field="format",
    )
