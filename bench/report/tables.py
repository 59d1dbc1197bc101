"""Tables for people, as the benches import them; they are made in console/tables.py."""

from console.tables import aligned

__all__ = ["aligned"]
