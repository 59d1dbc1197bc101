"""Which lines a site changes: the address, and the threshold of one alarm rate.

What is said of other programs was read in their sources: the comment system Talk 4 (plugin
talk-plugin-toxic-comments) reads an environment, its successor Coral has the same as settings. Both
append `/comments:analyze?key=...` to the address and act on scores above the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

OLD_ROOT = "https://commentanalyzer.googleapis.com"
API = "/v1alpha1"


@dataclass(frozen=True)
class Change:
    """Lines to set in one place."""

    where: str
    lines: tuple[str, ...]


def changes(address: str, threshold: float | None, attribute: str) -> list[Change]:
    """Of well-known programs and of code of one's own; `threshold` is None where none keeps."""
    shown = "<choose one>" if threshold is None else f"{threshold:.15g}"
    percent = shown if threshold is None else f"{round(100 * threshold, 12):g}"
    return [
        Change(
            "code of your own: the address and the number that it compares with",
            (f"{OLD_ROOT}{API}  ->  {address}{API}", f"threshold  ->  {shown}"),
        ),
        Change(
            "Talk 4: environment of its server",
            (
                f"TALK_PERSPECTIVE_API_ENDPOINT={address}{API}",
                f"TALK_PERSPECTIVE_MODEL={attribute}",
                f"TALK_TOXICITY_THRESHOLD={shown}",
            ),
        ),
        Change(
            "Coral: Configure, Moderation, Toxic comment filter",
            (
                f"Custom endpoint: {address}{API}",
                f"Toxicity model: {attribute}",
                f"Toxicity threshold: {percent} %",
            ),
        ),
    ]
