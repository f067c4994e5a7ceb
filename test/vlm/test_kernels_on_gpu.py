"""The kernels on a GPU: what ``test_kernel_operators.py`` shows of their sources, on the chip."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("cuda.bindings")

from tiny_decoders import pack_model, round_to_grid, tiny_model

from edge_perception.vlm import kernel_operators
from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.int8_linear import Int8Weight, int8_linear
from edge_perception.vlm.kernel_launcher import GpuLauncher
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.kv_cache import FloatKvLayer, Int8KvLayer, quantise_vectors
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.operators import HeadLayout, RotaryTable, Span
from edge_perception.vlm.packed_linear import PackedWeight
from edge_perception.vlm.sampling import GREEDY, Sampling, choose_tokens
from edge_perception.vlm.torch_operators import TorchOperators, rms_norm
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.weights import FloatWeight

pytestmark = pytest.mark.gpu

PROMPT = Prompt(torch.randint(0, 128, (12,), generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def kernels() -> KernelOperators:
    return KernelOperators(GpuLauncher(), "cuda")


@pytest.mark.parametrize(
    ("channels", "columns"), [(576, 576), (6144, 4096), (4096, 14336), (49152, 576)]
)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 8])
def test_products_agree_with_float64(kernels, channels, columns, bits, rows) -> None:
    group = 128 if columns % 128 == 0 else 64
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(channels, columns, generator=generator) / columns**0.5
    weight = round_to_grid(dense, bits, group).to("cuda")
    x = torch.randn(rows, columns, generator=generator).half().cuda()
    residual = torch.zeros(rows, channels, dtype=torch.float16, device="cuda")
    got = kernels.linear_add(x, weight, residual)
    exact = x.double() @ weight.dequantize(torch.float64).T
    assert float((got.double() - exact).norm() / exact.norm()) < 1e-3
    alone = kernels.linear_add(x[:1], weight, residual[:1])
    assert torch.equal(alone[0], got[0])


@pytest.mark.parametrize("packed_rows", [0, 10**9], ids=["dequantised", "packed"])
@pytest.mark.parametrize("rows", [9, 20, 100, 130, 300])
@pytest.mark.parametrize(
    ("channels", "columns", "group"), [(576, 576, 64), (1024, 4096, 128), (208, 1056, 32)]
)
def test_products_of_many_rows_agree_with_float64(
    kernels, monkeypatch, channels: int, columns: int, group: int, rows: int, packed_rows: int
) -> None:
    monkeypatch.setattr(kernels._prefill, "fused_rows", packed_rows)
    monkeypatch.setattr(kernel_operators, "PASS_ROWS", 16)
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(channels, columns, generator=generator) / columns**0.5
    weight = round_to_grid(dense, 4, group).to("cuda")
    x = torch.randn(rows, columns, generator=generator).half().cuda()
    residual = torch.randn(rows, channels, generator=generator).half().cuda()
    norm = torch.ones(columns).half().cuda()
    exact = x.double() @ weight.dequantize(torch.float64).T
    got = kernels.linear_add(x, weight, residual)
    assert torch.equal(kernels.linear_add(x, weight, residual), got)
    assert float((got.double() - residual - exact).norm() / exact.norm()) < 2e-3
    normed = rms_norm(x, norm, 1e-5).double() @ weight.dequantize(torch.float64).T
    gate, up = normed.chunk(2, dim=-1)
    wanted = torch.nn.functional.silu(gate) * up
    got = kernels.norm_gate_up(x, norm, 1e-5, weight).double()
    assert float((got - wanted).norm() / wanted.norm()) < 2e-3


@pytest.mark.parametrize("rows", [1, 8, 9, 200])
def test_8_bit_activations_agree_with_the_oracle(kernels, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (768, 1024), generator=generator, dtype=torch.uint8)
    scales = torch.full((768, 1), 1e-3).half()
    packed = PackedWeight.from_codes(codes, scales, torch.full((768, 1), 128), bits=8)
    weight = Int8Weight.of(packed.to("cuda"))
    x = torch.randn(rows, 1024, generator=generator).half().cuda()
    residual = torch.zeros(rows, 768).half().cuda()
    wanted = int8_linear(x, weight).double()
    got = kernels.linear_add(x, weight, residual).double()
    assert float((got - wanted).norm() / wanted.norm()) < 1e-3
    norm = torch.ones(1024).half().cuda()
    gate, up = int8_linear(rms_norm(x, norm, 1e-5), weight).double().chunk(2, dim=-1)
    wanted = torch.nn.functional.silu(gate) * up
    got = kernels.norm_gate_up(x, norm, 1e-5, weight).double()
    assert float((got - wanted).norm() / wanted.norm()) < 5e-3


@pytest.mark.parametrize("kv_format", ["float", "int8"])
@pytest.mark.parametrize("first", [0, 5, 130, 1000])
@pytest.mark.parametrize(("rows", "heads"), [(1, (28, 4)), (3, (8, 8)), (200, (14, 2))])
def test_attention_agrees_with_torch(kernels, rows, heads, first, kv_format) -> None:
    layout = HeadLayout(*heads, 128, None, 1e-6)
    shape = (heads[1], 2048, 128)
    caches = []
    for _ in range(2):
        torch.manual_seed(0)
        keys, values = (torch.randn(shape, device="cuda").half() for _ in range(2))
        if kv_format == "float":
            caches.append(FloatKvLayer(keys, values))
        else:
            held = [quantise_vectors(each) for each in (keys, values)]
            caches.append(Int8KvLayer(held[0][0], held[1][0], held[0][1], held[1][1]))
    angles = torch.rand(2048, 64, device="cuda")
    table = RotaryTable(angles.cos(), angles.sin())
    qkv = torch.randn(rows, (heads[0] + 2 * heads[1]) * 128, device="cuda").half()
    positions = torch.arange(first, first + rows, device="cuda")
    span = Span(torch.tensor([first], device="cuda"), rows, first + rows)
    got = kernels.attend(qkv, layout, table, positions, caches[0], span)
    wanted = TorchOperators().attend(qkv.float(), layout, table, positions, caches[1], span)
    torch.testing.assert_close(got.float(), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("words", [1000, 32000, 128256])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_k=40, top_p=0.9, seed=3)], ids=str)
def test_sampled_tokens_are_those_of_the_definition(kernels, sampling, words: int) -> None:
    logits = 3 * torch.randn(8, words, generator=torch.Generator().manual_seed(1)).half()
    slots = torch.arange(8) + 100
    wanted = choose_tokens(logits.float(), sampling, slots)
    got = kernels.sample(logits.cuda(), sampling, slots.cuda()).cpu()
    assert torch.equal(got, wanted)


def decoders(kernels: KernelOperators, **options: Any) -> tuple[Decoder, Decoder]:
    """One on the kernels, one on torch's operators on the same GPU."""
    model = pack_model(tiny_model("Qwen3")).half().cuda()
    weights = take_tower(model)
    made = [Decoder(weights, capacity=32, operators=o, **options)
            for o in (kernels, TorchOperators())]  # fmt: skip
    return made[0], made[1]


@pytest.mark.parametrize("kv_format", ["float", "int8"])
def test_decoder_on_kernels_gives_the_logits_of_torch(kernels, kv_format: str) -> None:
    ours, theirs = decoders(kernels, kv_format=kv_format)
    for prompt in (PROMPT, Prompt.of([5]), Prompt.of([6, 7, 8])):
        torch.testing.assert_close(ours.logits(prompt), theirs.logits(prompt), rtol=0.02, atol=0.02)


def test_graphs_of_the_segments_replay_the_steps(kernels) -> None:
    decoder, _ = decoders(kernels, segments=2)
    wanted = [decoder.prefill(PROMPT), *(decoder.step() for _ in range(10))]
    graphs = []
    with torch.inference_mode():
        for index in range(2):
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1], capture_error_mode="thread_local"):
                decoder.run_segment(index, 1)
        decoder.rewind(0)
        tokens = [decoder.prefill(PROMPT)]
        for _ in range(10):
            for graph in graphs:
                graph.replay()
            tokens.append(int(decoder.state.tokens[0]))
    assert tokens == wanted


def test_embedding_of_a_float_table(kernels) -> None:
    table = FloatWeight(torch.randn(50, 64, dtype=torch.float16, device="cuda"))
    words = torch.tensor([3, 49], device="cuda")
    assert torch.equal(kernels.embed(words, table, torch.float16), table.values[words])
