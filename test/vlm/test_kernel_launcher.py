import pytest

pytest.importorskip("torch")
pytest.importorskip("cuda.bindings.nvrtc")

from edge_perception.vlm import kernel_launcher
from edge_perception.vlm.kernel_launcher import cached_cubin, read_source

SOURCES = ("attention.cu", "embedding.cu", "linear.cu", "sampling.cu")


@pytest.mark.parametrize("source", SOURCES)
def test_source_needs_no_header_of_the_toolkit(source: str) -> None:
    assert "#include" not in read_source(source)


def test_embedding_compiles_for_an_orin(tmp_path) -> None:
    assert cached_cubin("embedding.cu", "sm_87", tmp_path)[:4] == b"\x7fELF"


def test_source_is_compiled_once_for_each_architecture(tmp_path, monkeypatch) -> None:
    compiled = []

    def compile_text(text: str, name: str, architecture: str) -> bytes:
        compiled.append(architecture)
        return f"{name} for {architecture}".encode()

    monkeypatch.setattr(kernel_launcher, "compile_text", compile_text)
    for architecture in ("sm_87", "sm_90", "sm_87"):
        cubin = cached_cubin("linear.cu", architecture, tmp_path / "new")
        assert cubin == f"linear.cu for {architecture}".encode()
    assert compiled == ["sm_87", "sm_90"]
    assert len(list((tmp_path / "new").iterdir())) == 2  # nothing half-written is left


def test_folder_that_cannot_be_written_costs_compiling_again(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(kernel_launcher, "compile_text", lambda *_: b"compiled")
    (tmp_path / "file").write_text("")
    assert cached_cubin("linear.cu", "sm_87", tmp_path / "file" / "below") == b"compiled"
    assert "cannot be kept" in caplog.text
