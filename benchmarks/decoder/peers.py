"""What others make of the same weights on the same GPU, in the same run.

    python -m benchmarks.decoder.peers --out docs/benchmarks/decode_h100.json

transformers' own model in FP16, eager and over a static cache compiled by torch.compile with CUDA
graphs (layer by layer, see ``compiled_peer``, and for one shape as a whole); and the same compiled
model in bfloat16 with torch's own INT4 product. Weights are those of
``h100`` (same seed), moved into the peers' layouts and not drawn again. A static cache is attended
to as a whole, so it is given no more slots than the contexts of the table's first two need.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from benchmarks.decoder.compiled_peer import CompiledSteps
from benchmarks.decoder.random_models import RandomModel, read_model
from benchmarks.decoder.results import Results, shapes_parser
from benchmarks.decoder.timing import copy_bandwidth_gb_s, percentiles, times_ms
from edge_perception.vlm.assembly import build_skeleton, set_parameter
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.weights import DecoderWeights, FloatWeight

SHAPES = ("llama-3-8b", "nvila-2b", "llama-2-13b", "llama-2-7b", "nvila-8b")
CONTEXTS = (4, 512)
STATIC_SLOTS = 520
EAGER_STEPS = 30
STEPS = 100
INNER_TILES = 8
LARGEST_ERROR = {torch.float16: 0.02, torch.bfloat16: 0.15}
"""Of the logits of all layers; rounding adds up, other weights would make it 1 and more."""

NOT_AVAILABLE = {
    "gptqmodel (Marlin)": "its registry has sources only; building them was not attempted",
    "vLLM (Marlin)": "its wheel is several hundred MB and pins another torch than the machine's",
}


class TorchInt4(nn.Module):
    """A linear layer by ``torch._weight_int4pack_mm``, from our packed weight."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        codes = weight.unpacked_codes()
        pairs = codes[:, ::2] << 4 | codes[:, 1::2]
        packed = torch._convert_weight_to_int4pack(pairs.contiguous(), INNER_TILES)
        scales = weight.scales.float()
        offsets = (8.0 - weight.zeros.float()) * scales
        both = torch.stack((scales, offsets), dim=-1).transpose(0, 1).contiguous()
        bias = None if weight.bias is None else weight.bias.to(torch.bfloat16)
        self.group_size = weight.group_size
        self.register_buffer("packed", packed)
        self.register_buffer("scales_and_zeros", both.to(torch.bfloat16))
        self.register_buffer("bias", bias)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        out = torch._weight_int4pack_mm(rows, self.packed, self.group_size, self.scales_and_zeros)
        out = out.view(*inputs.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


Matrix = FloatWeight | PackedWeight


def split_rows(weight: Matrix, sizes: list[int]) -> list[Matrix]:
    """The parts of a stacked matrix; views."""
    parts: list[Matrix] = []
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        bias = None if weight.bias is None else weight.bias[rows]
        if isinstance(weight, FloatWeight):
            parts.append(FloatWeight(weight.values[rows], bias))
        else:
            held = {"codes": weight.codes, "scales": weight.scales, "zeros": weight.zeros}
            cut = {name: tensor[rows] for name, tensor in held.items()}
            parts.append(replace(weight, **cut, bias=bias))
        start += size
    return parts


def matrices_of(weights: DecoderWeights) -> Iterator[tuple[str, Matrix]]:
    """Every matrix by the name of its module in transformers."""
    shape = weights.shape
    yield "model.embed_tokens", weights.embedding
    yield "lm_head", weights.head
    for index, layer in enumerate(weights.layers):
        qkv = split_rows(layer.qkv, [shape.query_width, shape.kv_width, shape.kv_width])
        gate_up = split_rows(layer.gate_up, [shape.intermediate_size] * 2)
        names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
        for name, matrix in zip(names, (*qkv, layer.output, *gate_up, layer.down)):
            yield f"model.layers.{index}.{name}", matrix


def transformers_model(config: dict[str, Any], weights: DecoderWeights, dtype: Any) -> nn.Module:
    """The model of transformers with our tensors in it; packed matrices become ``TorchInt4``."""
    device = weights.final_norm.device
    model = build_skeleton(config, dtype)
    for name, matrix in matrices_of(weights):
        if isinstance(matrix, FloatWeight):
            set_parameter(model, f"{name}.weight", matrix.values.to(dtype))
            if matrix.bias is not None:
                set_parameter(model, f"{name}.bias", matrix.bias.to(dtype))
            continue
        parent, _, leaf = name.rpartition(".")
        if leaf == "embed_tokens":  # tied: a table's rows cannot be read out of torch's layout
            set_parameter(model, f"{name}.weight", matrix.dequantize(dtype))
        else:
            setattr(model.get_submodule(parent), leaf, TorchInt4(matrix))
    for name, parameter in list(model.named_parameters()):
        if name.endswith("norm.weight"):
            set_parameter(model, name, torch.ones(parameter.shape, dtype=dtype, device=device))
    return model.to(device)


def error_against_ours(model: nn.Module, weights: DecoderWeights) -> float:
    """Relative difference of the logits over a prompt, from those of our decoder in torch."""
    words = weights.shape.vocab_size
    tokens = torch.randint(0, words, (16,), generator=torch.Generator().manual_seed(1))
    wanted = Decoder(weights, capacity=32).logits(Prompt(tokens)).double()
    got = model(tokens[None].to(weights.final_norm.device)).logits[0].double()
    return float((got - wanted).norm() / wanted.norm())


def time_eager(model: nn.Module) -> dict[int, list[float]]:
    """Steps over a growing cache, which is cut back before each."""
    times = {}
    token = torch.tensor([[5]], device="cuda")
    for context in CONTEXTS:
        cache = DynamicCache()
        model(torch.ones(1, context - 1, dtype=torch.int64, device="cuda"),
              past_key_values=cache, logits_to_keep=1)  # fmt: skip

        def step(cache: DynamicCache = cache) -> None:
            logits = model(token, past_key_values=cache, logits_to_keep=1).logits
            logits[:, -1].argmax(-1)

        def cut(cache: DynamicCache = cache, length: int = context - 1) -> None:
            if cache.get_seq_length() > length:
                cache.crop(length)

        times_ms(step, prepare=cut, times=3)
        times[context] = times_ms(step, prepare=cut, times=EAGER_STEPS)
    return times


def time_compiled(model: nn.Module) -> dict[int, list[float]]:
    """Steps over a static cache, layers compiled, a step as one CUDA graph."""
    steps = CompiledSteps(model, STATIC_SLOTS, partial(torch.compile, dynamic=False))
    graph = steps.captured()
    times = {}
    for context in CONTEXTS:
        prepare = partial(steps.length.fill_, context - 1)
        times_ms(graph.replay, prepare=prepare, times=5)
        times[context] = times_ms(graph.replay, prepare=prepare, times=STEPS)
    return times


def time_whole(model: nn.Module) -> dict[int, list[float]]:
    """Steps over transformers' static cache, the whole of each compiled, with CUDA graphs."""
    cache = StaticCache(config=model.config, max_cache_len=STATIC_SLOTS)
    model(torch.ones(1, 3, dtype=torch.int64, device="cuda"), past_key_values=cache)

    def step(token: Tensor) -> Tensor:
        logits = model(token, past_key_values=cache, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def go_to(length: int) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        for layer in cache.layers:
            layer.cumulative_length.fill_(length)

    compiled = torch.compile(step, mode="reduce-overhead", dynamic=False)
    run = partial(compiled, torch.tensor([[5]], device="cuda"))
    times = {}
    for context in CONTEXTS:
        prepare = partial(go_to, context - 1)
        times_ms(run, prepare=prepare, times=5)
        times[context] = times_ms(run, prepare=prepare, times=STEPS)
    return times


WAYS = {
    "eager": time_eager,
    "static cache, layers by torch.compile, a CUDA graph a step": time_compiled,
    "static cache, torch.compile reduce-overhead": time_whole,
}
EAGER, COMPILED, WHOLE = WAYS


class Peers:
    """Runs them one after the other and keeps their figures."""

    def __init__(self, results: Results, ends: float) -> None:
        self._results = results
        self._ends = ends

    def run(self, shape: str, bits: int, ways: Sequence[str]) -> None:
        """Some ways to run one shape, as far as there is time left."""
        if time.monotonic() > self._ends:
            print("no time left for", shape, bits, ways, flush=True)
            return
        with self._results.part(f"{shape}, {bits} bits"):
            self._run(shape, bits, ways)

    def _run(self, shape: str, bits: int, ways: Sequence[str]) -> None:
        began = time.monotonic()
        dtype = torch.float16 if bits == 16 else torch.bfloat16
        config = read_model(shape)
        weights = RandomModel(config, bits=bits, head_bits=bits).weights()
        model = transformers_model(config, weights, dtype)
        error = error_against_ours(model, weights)
        assert error < LARGEST_ERROR[dtype], f"{shape}: the peer answers otherwise ({error})"
        del weights
        for way in ways:
            if time.monotonic() < self._ends:
                with self._results.part(f"{shape}, {bits} bits, {way}"):
                    self._keep(shape, bits, way, model, error)
        torch.compiler.reset()
        del model
        gc.collect()
        torch.cuda.empty_cache()
        print(f"  took {time.monotonic() - began:.0f} s", flush=True)

    def _keep(self, shape: str, bits: int, way: str, model: nn.Module, error: float) -> None:
        kind = "FP16" if bits == 16 else "bfloat16, torch's INT4 (layers and head)"
        figures = self._results.figures["peers"].setdefault(
            f"transformers {kind}, {way}",
            {"precision": "fp16" if bits == 16 else "int4", "ms": {}, "p90": {}, "seconds": {},
             "error": {}, "slots": "as many as needed" if way == EAGER else STATIC_SLOTS},
        )  # fmt: skip
        began = time.monotonic()
        told = {context: percentiles(times) for context, times in WAYS[way](model).items()}
        for value, name in (("p50", "ms"), ("p90", "p90")):
            figures[name][shape] = {str(context): found[value] for context, found in told.items()}
        figures["seconds"][shape] = round(time.monotonic() - began, 1)
        figures["error"][shape] = error
        print(shape, kind, way, told, "error", f"{error:.1e}", flush=True)


@torch.no_grad()
def main() -> int:
    """Run the peers asked for, until the time is up; 1 where one failed."""
    parser = shapes_parser(__doc__)
    parser.set_defaults(only=SHAPES)
    parser.add_argument("--whole", nargs="*", choices=SHAPES, default=SHAPES[:1],
                        help="compiled as a whole too: a minute each")  # fmt: skip
    options = parser.parse_args()
    results = Results(options.out)
    results.stamp(options.commit)
    results.figures["peers_not_available"] = NOT_AVAILABLE
    results.figures["copy_bandwidth_gb_s"] = copy_bandwidth_gb_s()
    # A layer compiled anew would be run uncompiled in the end, and be slow without a word.
    torch._dynamo.config.error_on_recompile = True
    peers = Peers(results, time.monotonic() + options.seconds)
    for shape in options.only:
        # Eager first: the compiled one changes the model.
        peers.run(shape, 16, (EAGER, COMPILED))
        peers.run(shape, 4, (COMPILED,))
    for shape in options.whole:
        for bits in (16, 4):
            peers.run(shape, bits, (WHOLE,))
    return int("failed" in results.figures)


if __name__ == "__main__":
    raise SystemExit(main())
