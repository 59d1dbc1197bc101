"""From which probability each model flags, and what to call it in tables.

A published version, a checkpoint with an operating curve and a live server state a threshold of
their own: that comes first in every table. DEFAULT stands beside it, and alone in documents that
are older than OWN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import logit as logit_of

from contract import DECISION_THRESHOLD
from quality.metrics import threshold_for_fpr, threshold_for_precision
from train.validation import probability_of

OWN, DEFAULT = "own threshold", f"{DECISION_THRESHOLD:g}"
"""Names of the threshold that a model states, and of the one that an uncertain score has."""
Source = Literal["manifest", "operating curve", "server", "default"]
_SAYS: dict[str, str] = {
    "manifest": "its manifest's",
    "operating curve": "its operating curve's",
    "server": "the server's",
    "default": "the default, for it states none",
}
Shown = Mapping[str, float | None]


@dataclass(frozen=True)
class StatedThreshold:
    """From which probability a model flags a comment, and who says so."""

    threshold: float = DECISION_THRESHOLD
    source: Source = "default"

    @property
    def logit(self) -> float:
        """May be infinite."""
        return float(logit_of(self.threshold))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def thresholds_of(
    own: StatedThreshold, labels: np.ndarray, logits: np.ndarray, precision: float, fpr: float
) -> dict[str, float | None]:
    """Logits from which a comment counts as toxic, by rule; the wanted ones by these comments."""
    return {
        OWN: own.logit,
        DEFAULT: StatedThreshold().logit,
        f"precision {precision:g}": threshold_for_precision(labels, logits, precision),
        f"FPR {fpr:g}": threshold_for_fpr(labels, logits, fpr),
    }


def as_json(logit: float | None) -> dict[str, float | None] | None:
    """A threshold in the document; None for one that nothing reaches."""
    if logit is None:
        return None
    probability = float(probability_of(np.array(logit)))
    return {"logit": logit if np.isfinite(logit) else None, "probability": probability}


# --- Of a document -----------------------------------------------------------------------
def deciding(document: Mapping[str, Any], model: str) -> str:
    """The rule that the model's decisions are reported by first."""
    return OWN if OWN in document["thresholds"][model] else DEFAULT


def rules(document: Mapping[str, Any], model: str, *, wanted: bool = True) -> Iterator[str]:
    """Rules of a model that have a threshold, its own first; DEFAULT only where it is another one.

    `wanted`: those that a precision or a false-positive rate was wanted for, too.
    """
    found = document["thresholds"][model]
    for rule, chosen in found.items():
        same = rule == DEFAULT and OWN in found and found[OWN] == chosen
        if chosen and not same and (wanted or rule in (OWN, DEFAULT)):
            yield rule


def words(document: Mapping[str, Any], model: str, rule: str) -> str:
    """Such as "0.62, its manifest's"."""
    if rule != OWN:
        return rule
    return f"{number(document, model)}, {_SAYS[document['models'][model]['decides']['source']]}"


def number(document: Mapping[str, Any], model: str) -> str:
    """The threshold of `deciding`, such as "0.62"."""
    if deciding(document, model) == DEFAULT:
        return DEFAULT
    return f"{document['models'][model]['decides']['threshold']:g}"


def metric(found: Mapping[str, Any], name: str, rule: str) -> Shown | None:
    """Of `found`, metrics by name; an older document has those at DEFAULT by the name alone."""
    plain = found.get(name) if rule == DEFAULT else None
    shown: Shown | None = found.get(f"{name} at {rule}", plain)
    return shown
