"""Widths of the attention groups: the few that cost least over the lengths of training comments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from train.model import ModelConfig

WIDTH_STEP = 8
"""Widths are multiples of it: eight floats fill a vector register."""
GROUP_COST = 96.0
"""What one more group costs a comment, in scores (W * W counts one for each pair of tokens): the
fixed time of its operators, spread over the comments of a batch. Measured: at batch 32 anything
from 64 to 192 is within 2 %; small batches gain by fewer groups, for an empty one costs too."""


def groups_for(config: ModelConfig, lengths: Iterable[int]) -> tuple[int, ...]:
    """`choose_groups` for the attention of `config`: each token of linear attention costs C."""
    per_token = config.d_model // config.n_heads if config.attention == "linear" else None
    return choose_groups(lengths, config.max_len, per_token)


def choose_groups(
    lengths: Iterable[int], max_len: int, per_token: int | None = None
) -> tuple[int, ...]:
    """Widths of the attention groups, ascending, the last one `max_len`.

    They minimise the mean cost of comments of these lengths plus GROUP_COST for each group, over
    all sets of multiples of WIDTH_STEP, by dynamic programming. A comment of width W costs W * W
    scores, or W * `per_token` where that is given. `lengths` are those of training comments in
    tokens, [CLS] included.
    """
    counts = Counter(min(int(length), max_len) for length in lengths)
    total = max(1, counts.total())
    widths = [*range(WIDTH_STEP, max_len, WIDTH_STEP), max_len]
    cost = [width * (per_token or width) for width in widths]
    at_most = [sum(n for length, n in counts.items() if length <= width) for width in [0, *widths]]
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]  # [i]: all up to widths[i - 1] done
    for last, width in enumerate(widths, start=1):
        best.append(
            min(
                (
                    best[first][0]
                    + cost[last - 1] * (at_most[last] - at_most[first]) / total
                    + GROUP_COST,
                    (*best[first][1], width),
                )
                for first in range(last)
            )
        )
    return best[-1][1]
