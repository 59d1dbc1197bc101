"""Tables for people, as the benches import them; they are made in console/tables.py."""

from console.tables import aligned, with_interval

__all__ = ["aligned", "with_interval"]
