from pathlib import Path

import pytest

from edge_perception.core.cache import cache_folder
from edge_perception.errors import EngineError


def test_folder_lies_where_the_user_wants_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("engines") == Path("/somewhere/edge_perception/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/robot")
    assert cache_folder("engines") == Path("/home/robot/.cache/edge_perception/engines")


def test_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(EngineError, match=r"no folder for engines.*Set XDG_CACHE_HOME"):
        cache_folder("engines")
