"""Time to the first token and time for each one, predicted from bytes, operations and shares.

Decode at batch 1 reads every weight and the whole cache once a token, so bytes over bandwidth bound
it; what is reached of the bandwidth is a share that the caller names. What is left between kernels,
even inside a CUDA graph, is added: it is what small models wait for. Prefill is bound by operations
from some hundred tokens on, by the same bytes below that: the larger of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_perception.core.language_model import LanguageModelShape
from edge_perception.planner.devices import DeviceProfile, Efficiency
from edge_perception.planner.memory import WeightScheme, bytes_read_per_token, kv_bytes_read

KERNELS_PER_LAYER = 5
"""QKV, attention, output, gate and up, down."""

KERNELS_OUTSIDE = 6
"""Embedding, positions, head, sampling, the token and the length for the next step."""

DECODE_FORMULA = (
    "ms/token = (weight bytes + KV bytes) / (bandwidth x decode share)"
    f" + ({KERNELS_PER_LAYER} x layers + {KERNELS_OUTSIDE}) x kernel gap"
)
PREFILL_FORMULA = (
    "TTFT = max(operations / (FP16 throughput x prefill share),"
    " weight bytes / (bandwidth x decode share)) + launches as in decode;"
    " operations = 2 x parameters x tokens + 2 x layers x query width x tokens^2"
    " (causal attention) + head; the vision encoder is not in it"
)


@dataclass(frozen=True)
class Prediction:
    """Milliseconds, predicted; ``decode_ms`` at the given context, ``ttft_ms`` for the prompt."""

    decode_ms: float
    ttft_ms: float
    decode_bytes: int
    prefill_operations: int


def predict(
    shape: LanguageModelShape,
    device: DeviceProfile,
    efficiency: Efficiency,
    *,
    weights: WeightScheme,
    head: WeightScheme,
    kv_format: str,
    context: int,
    prompt_tokens: int,
) -> Prediction:
    """Predict by the formulas of this module."""
    reached = device.bandwidth_gb_s * 1e9 * efficiency.decode.share
    weight_bytes = bytes_read_per_token(shape, weights, head)
    decode_bytes = weight_bytes + kv_bytes_read(shape, kv_format, context)
    launches = launches_ms(shape, efficiency.kernel_gap_us)
    operations = prefill_operations(shape, prompt_tokens)
    computing = operations / (device.fp16_dense_tflops * 1e12 * efficiency.prefill.share)
    return Prediction(
        decode_ms=decode_bytes / reached * 1e3 + launches,
        ttft_ms=max(computing, weight_bytes / reached) * 1e3 + launches,
        decode_bytes=decode_bytes,
        prefill_operations=operations,
    )


def launches_ms(shape: LanguageModelShape, kernel_gap_us: float) -> float:
    """What the kernels of a step cost beyond their work."""
    return (KERNELS_PER_LAYER * shape.layers + KERNELS_OUTSIDE) * kernel_gap_us / 1e3


def prefill_operations(shape: LanguageModelShape, tokens: int) -> int:
    """Multiplications and additions of a prefill; the head runs for the last token alone."""
    products = 2 * shape.linear_parameters * tokens + 2 * shape.embedding_parameters
    # Scores and the weighted sum: 2 x 2 x width for each pair, and half of the pairs are seen.
    attention = 2 * shape.layers * shape.query_width * tokens * tokens
    return products + attention
