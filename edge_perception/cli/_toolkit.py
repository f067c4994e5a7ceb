"""Whether the optional toolkit (torch, transformers) is here, told before it is needed."""

from __future__ import annotations

import importlib

from edge_perception.errors import ConfigError

_LIBRARIES = ("torch", "transformers", "safetensors", "gguf")


def require_toolkit() -> None:
    """Raise ``ConfigError`` with the command that installs what is missing."""
    for name in _LIBRARIES:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a library whose files are incomplete
            raise ConfigError(
                f"the language-model toolkit needs {name}, which cannot be imported ({error})",
                expected=", ".join(_LIBRARIES),
                mend="Install it with: scripts/setup.sh --extra vlm",
            ) from error
