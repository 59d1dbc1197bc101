"""Columns of values as the fields of lines, all rows of a chunk at once by Arrow's own kernels.

A column is an Arrow array, or a list of what Arrow has no text for that is Python's. The text of a
float is Python's, too: the shortest that gives the same double.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TEXT_TYPE = pa.large_string()
_CSV_QUOTED = '[",\r\n]'
_JSON_ESCAPED = r'[\x00-\x1f"\\]'
_json_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode


def scalar(text: str) -> Any:
    """A text that is every row's."""
    return pa.scalar(text, TEXT_TYPE)


def joined(*columns: Any) -> Any:
    """Texts of several columns, one behind the other in each row."""
    return pc.binary_join_element_wise(*columns, scalar(""))


def lines(columns: Sequence[Any], between: str) -> memoryview:
    """The rows as lines, each the texts of the columns with `between` between them."""
    *others, last = columns
    if isinstance(last, pa.Scalar):
        last = scalar(last.as_py() + "\n")
    else:
        last = joined(last, scalar("\n"))
    found = pc.binary_join_element_wise(*others, last, scalar(between))
    if not len(found):
        return memoryview(b"")
    _, offsets, data = found.buffers()
    ends = np.frombuffer(offsets, np.int64)[found.offset : found.offset + len(found) + 1]
    return memoryview(data)[ends[0] : ends[-1]]


# --- Fields ------------------------------------------------------------------------------
def csv_fields(column: Any) -> Any:
    """Fields of CSV: text, in quotes where it needs them, nothing for what is missing."""
    if isinstance(column, list):
        texts = pa.array([csv_text(value) for value in column], TEXT_TYPE)
    else:
        texts = _texts(column).fill_null("")
    needed = pc.match_substring_regex(texts, _CSV_QUOTED)
    if not pc.any(needed).as_py():
        return texts
    quote = scalar('"')
    doubled = pc.replace_substring(texts.filter(needed), '"', '""')
    return pc.replace_with_mask(texts, needed, joined(quote, doubled, quote))


def json_values(column: Any) -> Any:
    """Values of JSON."""
    if isinstance(column, list):
        texts = [repr(v) if type(v) is int else _json_text(v) for v in column]
        return pa.array(texts, TEXT_TYPE)
    texts = _texts(column)
    if not _is_text(column.type):
        return texts.fill_null("null")
    escaped = pc.match_substring_regex(texts, _JSON_ESCAPED).fill_null(False)
    quote = scalar('"')
    found = joined(quote, texts, quote).fill_null("null")
    if not pc.any(escaped).as_py():
        return found
    values = map(_json_text, texts.filter(escaped).to_pylist())
    return pc.replace_with_mask(found, escaped, pa.array(values, TEXT_TYPE))


def csv_text(value: Any) -> str:
    """What a CSV has for a value that JSON has."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _json_text(value) if isinstance(value, list | dict) else str(value)


# --- Values ------------------------------------------------------------------------------
def values_of(column: Any) -> Any:
    """An Arrow column that `csv_fields` and `json_values` take; a list for most other types."""
    kind = column.type
    known = _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if known or kind in (pa.float32(), pa.float64()):
        return column
    return [plain(value) for value in column.to_pylist()]


def plain(value: Any) -> Any:
    """A value that JSON has: no NaN, no bytes."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _texts(column: Any) -> Any:
    if not pa.types.is_floating(column.type):
        return column.cast(TEXT_TYPE)
    values = column.cast(pa.float64())
    finite = pc.is_finite(values).fill_null(False)
    texts = float_texts(values.fill_null(0.0).to_numpy(zero_copy_only=False))
    return pc.if_else(finite, texts, pa.scalar(None, TEXT_TYPE))


def float_texts(values: np.ndarray) -> Any:
    """Python's text of doubles [n]. Arrow writes the same digits, some of them in another way."""
    texts = pa.array(values).cast(TEXT_TYPE)
    sizes = np.abs(values)
    with np.errstate(invalid="ignore"):
        same = (sizes >= 1e-4) & (sizes < 1e9) & (values != np.floor(values))
    if same.all():
        return texts
    others = pa.array(map(repr, values[~same].tolist()), TEXT_TYPE)
    return pc.replace_with_mask(texts, pa.array(~same), others)
