"""Activation ranges of an INT8 form: the least and the greatest value at each point, measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from contract import ATTENTION_MASK, INPUT_IDS
from export.graph.encoder import STUDENT, TEACHER, Servable, serving_graph
from export.graph.nodes import Graph, model_proto
from export.session import open_session
from train.methods.qat import Ranges, widened
from train.model import ToxicityEncoder


def calibrate_model(
    model: Servable, groups: Sequence[int], comments: Iterable[np.ndarray]
) -> Ranges:
    """Each model of a cascade over all comments, for one that is asked may be any of them."""
    if isinstance(model, ToxicityEncoder):
        return calibrate(serving_graph(model, groups), comments)
    comments, parts = list(comments), {STUDENT: model.student, TEACHER: model.teacher}
    return {
        prefix + point: ends
        for prefix, part in parts.items()
        for point, ends in calibrate(serving_graph(part, groups), comments).items()
    }


def calibrate(g: Graph, comments: Iterable[np.ndarray]) -> Ranges:
    """Range at every point over the comments, each run alone, `widened`."""
    ends = {
        point: (g("ReduceMin", x, keepdims=0), g("ReduceMax", x, keepdims=0))
        for point, x in g.points.items()
    }
    names = [name for pair in ends.values() for name in pair]
    session = open_session(model_proto(g, {name: [] for name in names}).SerializeToString())
    seen = []
    for ids in comments:
        input_ids = np.asarray(ids, np.int64)[None]
        feeds = {INPUT_IDS: input_ids, ATTENTION_MASK: np.ones_like(input_ids)}
        seen.append(session.run(names, feeds))
    ends_of = np.array(seen, np.float64).reshape(len(seen), len(ends), 2)
    least, greatest = ends_of[..., 0].min(axis=0), ends_of[..., 1].max(axis=0)
    return {point: widened(float(least[i]), float(greatest[i])) for i, point in enumerate(ends)}
