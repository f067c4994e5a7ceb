"""The kernels on a GPU: what ``test_kernel_operators.py`` shows of their sources, on the chip."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("cuda.bindings")

from tiny_decoders import pack_model, round_to_grid, tiny_model

from edge_perception.vlm.decoder import Decoder
from edge_perception.vlm.kernel_launcher import GpuLauncher
from edge_perception.vlm.kernel_operators import KernelOperators
from edge_perception.vlm.language_model import Prompt
from edge_perception.vlm.torch_operators import TorchOperators
from edge_perception.vlm.tower import take_tower
from edge_perception.vlm.weights import FloatWeight

pytestmark = pytest.mark.gpu

PROMPT = Prompt(torch.randint(0, 128, (12,), generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def kernels() -> KernelOperators:
    return KernelOperators(GpuLauncher(), "cuda")


@pytest.mark.parametrize(("channels", "columns"), [(576, 576), (6144, 4096), (4096, 14336)])
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
