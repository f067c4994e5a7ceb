"""The errors this package raises on purpose.

Every one says what is wrong, what was expected, what came, and how to mend it, so that
the text alone is enough to act on in a log or in ``/diagnostics``.
"""

from __future__ import annotations

_MISSING = object()


class EdgePerceptionError(Exception):
    """Base of all errors raised on purpose.

    ``problem`` is a short statement, ``expected`` is described in words, ``got`` is shown by
    ``repr`` and ``mend`` is an instruction. Only ``problem`` is required.
    """

    def __init__(
        self, problem: str, *, expected: str = "", got: object = _MISSING, mend: str = ""
    ) -> None:
        self.problem = problem
        self.expected = expected
        self.got = got
        self.mend = mend
        super().__init__(self._text())

    def _text(self) -> str:
        parts = [self.problem]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got is not _MISSING:
            parts.append(f"got {self.got!r}")
        text = ": ".join([parts[0], ", ".join(parts[1:])]) if len(parts) > 1 else parts[0]
        return f"{text}. {self.mend}" if self.mend else text


class ImageError(EdgePerceptionError):
    """An image whose encoding, size, step or bytes do not make sense together."""


class FrameError(EdgePerceptionError):
    """A frame ring, lease or frame descriptor that is invalid, foreign or out of date."""


class FrameWriterGone(FrameError):
    """The process that wrote a frame ring has ended; its successor's frames name a new ring."""


class CudaError(EdgePerceptionError):
    """A CUDA call that failed.

    After a ``sticky`` one (an illegal address, say) every later call of the process fails too:
    its CUDA context is lost, and only a new process gets another.
    """

    sticky: bool = False


class ManifestError(EdgePerceptionError):
    """An engine manifest that is malformed or disagrees with the model it names."""


class EngineError(EdgePerceptionError):
    """A model or engine that cannot be loaded, built or run on this machine."""


class BagError(EdgePerceptionError):
    """A bag, video or image folder that cannot be read or holds no images."""


class CheckpointError(EdgePerceptionError):
    """A language-model checkpoint whose tensors or configuration cannot be trusted."""


class QuantizationError(EdgePerceptionError):
    """A quantisation request that cannot be carried out as asked."""


class ConfigError(EdgePerceptionError):
    """A parameter, option or device profile outside its documented range."""


class RenderError(EdgePerceptionError):
    """A scene of the rendered world that cannot be drawn on this machine or as asked."""


class DecodingError(EdgePerceptionError):
    """A prompt, a sampling option or a step that a language model cannot decode with."""


class RequestError(EdgePerceptionError):
    """A prompt message that is malformed, too long, or asks for what cannot be answered.

    ``request_id`` is the message's id, as far as it could be read.
    """

    request_id: str = ""


class DeviceMemoryError(EdgePerceptionError):
    """The memory of the device that runs a model does not suffice for what was asked."""
