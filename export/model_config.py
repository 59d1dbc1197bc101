"""The config.pbtxt of each model in the repository, made from validated values alone.

`render` gives the text of all three; `export.publish` writes it and `export.repository` compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb

import contract
from contract import (
    BACKEND,
    ENCODER_MODEL,
    MAX_BATCH_SIZE,
    MAX_REQUEST_COMMENTS,
    PUBLIC_MODEL,
    RAGGED_MODEL,
)
from export.tuning import CONFIG_FILE, MODELS, Tuning

__all__ = [
    "CONFIG_FILE",
    "MODELS",
    "Tuning",
    "batch_size",
    "difference",
    "encoder_config",
    "public_config",
    "ragged_config",
    "render",
]


def render(
    version: int, tuning: Tuning, cache_bytes: int, artifact: Mapping[str, Any]
) -> dict[str, str]:
    """Text of each model's config.pbtxt that serves `version`, which is `artifact`."""
    device, batch = artifact["device"], batch_size(artifact["max_len"])
    names = artifact.get(contract.ATTRIBUTES, ())
    configs = (
        ragged_config(tuning.instances, device, batch, len(names)),
        encoder_config(tuning.instances, device, batch, len(names)),
        public_config(tuning, device, cache_bytes, artifact.get("thresholds"), names),
    )
    for config in configs:
        config.version_policy.specific.versions.append(version)
    return {config.name: text_format.MessageToString(config) for config in configs}


def difference(found: str, expected: str) -> str:
    """The first value of a config.pbtxt that is not the expected one, in words."""
    try:
        parsed = text_format.Parse(found, pb.ModelConfig())
    except text_format.ParseError as error:
        return f"is no model configuration ({' '.join(str(error).split())})"
    values = dict(_values(json_format.MessageToDict(parsed)))
    wanted = dict(_values(json_format.MessageToDict(text_format.Parse(expected, pb.ModelConfig()))))
    for name in sorted(values.keys() | wanted.keys()):
        if values.get(name) != wanted.get(name):
            return f"has {name} {_shown(values.get(name))}, expected {_shown(wanted.get(name))}"
    return "has the expected values in another layout"


def _values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inner:
            yield from _values(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _shown(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


# --- Models ------------------------------------------------------------------------------
def public_config(
    tuning: Tuning,
    device: str = "cpu",
    cache_bytes: int = contract.DEFAULT_CACHE_BYTES,
    thresholds: Mapping[str, float] | None = None,
    attributes: Sequence[str] = (),
) -> pb.ModelConfig:
    """Text -> score with `tuning.instances` sessions of one thread, for the core."""
    config = pb.ModelConfig(
        name=PUBLIC_MODEL,
        backend=BACKEND,
        max_batch_size=MAX_REQUEST_COMMENTS if tuning.batching else 1,
        input=[pb.ModelInput(name=contract.TEXT, data_type=pb.TYPE_STRING, dims=[1])],
        output=[
            pb.ModelOutput(name=contract.PROBABILITY, data_type=pb.TYPE_FP32, dims=[1]),
            pb.ModelOutput(name=contract.LOGIT, data_type=pb.TYPE_FP32, dims=[1]),
            pb.ModelOutput(name=contract.MODEL_VERSION, data_type=pb.TYPE_STRING, dims=[1]),
        ],
        instance_group=[_instances(tuning.instances, device)],
    )
    if tuning.batching:
        # Without a delay a batch is what queued while one ran.
        config.dynamic_batching.max_queue_delay_microseconds = int(1e3 * tuning.window_ms)
    config.parameters[contract.CACHE_BYTES].string_value = str(cache_bytes)
    config.parameters[contract.MAX_BATCH].string_value = str(tuning.max_batch)
    if thresholds and PUBLIC_MODEL in thresholds:  # for clients, and for what the core counts
        config.parameters[contract.THRESHOLD].string_value = f"{thresholds[PUBLIC_MODEL]!r}"
    if attributes:
        _add_attributes(config, len(attributes))
        config.parameters[contract.ATTRIBUTES].string_value = ",".join(attributes)
    return config


def _add_attributes(config: pb.ModelConfig, count: int) -> None:
    config.output.add(name=contract.ATTRIBUTES, data_type=pb.TYPE_FP32, dims=[count])


def batch_size(max_len: int) -> int:
    """Most comments that a stock Triton may run together, all of them `max_len` tokens long."""
    return max(1, min(MAX_BATCH_SIZE, contract.MAX_BATCH_PAIRS // max_len**2))


def encoder_config(
    instances: int, device: str = "cpu", batch: int = MAX_BATCH_SIZE, attributes: int = 0
) -> pb.ModelConfig:
    """Ids -> logit, for the onnxruntime backend of a stock Triton image.

    The graph gives its logit as [B], and Triton wants at least one dimension beside the batch:
    `dims: [1]` with an empty `reshape` is its documented form for that
    (docs/user_guide/model_configuration.md, "Reshape").
    """
    config = _onnxruntime_config(ENCODER_MODEL, instances, device, batch, attributes)
    for name in (contract.INPUT_IDS, contract.ATTENTION_MASK):
        config.input.add(name=name, data_type=pb.TYPE_INT64, dims=[-1])
    return config


def ragged_config(
    instances: int, device: str = "cpu", batch: int = MAX_BATCH_SIZE, attributes: int = 0
) -> pb.ModelConfig:
    """Ids -> logit, batched by Triton whatever the requests' lengths; one comment a request.

    The onnxruntime backend joins a ragged input to one dimension, and Triton makes the counts,
    one for each request, as INT32 or FP32 only (docs/user_guide/ragged_batching.md and
    BatchInput in model_config.proto). One logit a request needs no `batch_output`.
    """
    config = _onnxruntime_config(RAGGED_MODEL, instances, device, batch, attributes)
    config.input.add(
        name=contract.INPUT_IDS, data_type=pb.TYPE_INT64, dims=[-1], allow_ragged_batch=True
    )
    config.batch_input.add(
        kind=pb.BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT,
        target_name=[contract.ACCUMULATED_COUNTS],
        data_type=pb.TYPE_INT32,
        source_input=[contract.INPUT_IDS],
    )
    return config


def _onnxruntime_config(
    name: str, instances: int, device: str, batch: int, attributes: int
) -> pb.ModelConfig:
    config = pb.ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch_size=batch,
        output=[
            pb.ModelOutput(
                name=contract.LOGIT,
                data_type=pb.TYPE_FP32,
                dims=[1],
                reshape=pb.ModelTensorReshape(),
            )
        ],
        instance_group=[_instances(instances, device)],
    )
    if attributes:
        _add_attributes(config, attributes)
    config.dynamic_batching.SetInParent()
    for key in ("intra_op_thread_count", "inter_op_thread_count"):
        config.parameters[key].string_value = "1"
    return config


def _instances(count: int, device: str) -> pb.ModelInstanceGroup:
    """`count` sessions; on "cuda" so many on each GPU, which Triton hands out."""
    group = pb.ModelInstanceGroup
    return group(kind=group.KIND_GPU if device == "cuda" else group.KIND_CPU, count=count)
