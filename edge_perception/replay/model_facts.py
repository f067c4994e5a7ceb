"""What a report says of the model, read from its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from edge_perception.core.manifest import Manifest, parse_manifest
from edge_perception.errors import ManifestError


def read_model_facts(path: Path) -> dict[str, Any]:
    """Return name, head, precision, input size, number of classes, licence and hash.

    Raises:
        ManifestError: it cannot be read or is malformed.
    """
    try:
        manifest = parse_manifest(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ManifestError(f"manifest {str(path)!r} cannot be read: {error}") from error
    return model_facts(manifest)


def model_facts(manifest: Manifest) -> dict[str, Any]:
    """Return name, head, precision, input size, number of classes, licence and hash."""
    size = manifest.preprocessing
    return {
        "name": manifest.name,
        "head": manifest.head,
        "precision": manifest.precision,
        "input": f"{size.width}x{size.height}",
        "classes": len(manifest.class_names),
        "license": manifest.license,
        "sha256": manifest.sha256,
    }
