"""Tiny models gain nothing from threads, and lose much where other work runs beside them."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory):
    """Operators by the CUDA kernels' sources, run on the CPU."""
    pytest.importorskip("torch")
    from warp_emulation import EmulatedLauncher

    from edge_perception.vlm.kernel_operators import KernelOperators

    return KernelOperators(EmulatedLauncher(tmp_path_factory.mktemp("kernels")), "cpu")
