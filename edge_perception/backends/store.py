"""Reading manifests from disk and refusing models that are not the ones they name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

from edge_perception.core.manifest import Manifest, parse_manifest
from edge_perception.errors import ManifestError


def load_manifest(path: Path) -> tuple[Manifest, Path]:
    """Read a manifest and check its model's hash.

    Returns:
        The manifest and the model's path.

    Raises:
        ManifestError: the manifest is missing, malformed, or names a model that is missing,
            outside its folder, or of another hash.
    """
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
        manifest = parse_manifest(mapping)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ManifestError(f"cannot read manifest {str(path)!r}: {error}") from error
    except ManifestError as error:
        raise ManifestError(f"manifest {str(path)!r}: {error}") from error
    return manifest, _checked_model(path, manifest)


def _checked_model(path: Path, manifest: Manifest) -> Path:
    folder = path.resolve().parent
    model = (folder / manifest.model).resolve()
    if not model.is_relative_to(folder):
        raise ManifestError(
            f"manifest {str(path)!r} names a model outside its folder", got=manifest.model
        )
    if not model.is_file():
        raise ManifestError(f"manifest {str(path)!r} names a missing model", got=str(model))
    found = sha256_of(model)
    if found != manifest.sha256:
        raise ManifestError(
            f"model {str(model)!r} is not the one that manifest {str(path)!r} describes",
            expected=f"sha256 {manifest.sha256}",
            got=found,
            mend="Restore the model, or export it again together with its manifest.",
        )
    return model


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
