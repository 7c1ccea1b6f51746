import json
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """No test sees the user's cache, or another test's."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("DLM_CACHE", str(cache))
    return cache


@pytest.fixture
def jsonl(tmp_path):
    """Writes texts to a jsonl file and returns its path as a text."""

    def write(texts: list[str], name: str = "data.jsonl", field: str = "text") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
        return str(path)

    return write
