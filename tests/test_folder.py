"""Finding the cache that a user means."""

import os

import pytest
from test_store import write

from cliad.cache.folder import cache_dir, cache_path, find, slug
from cliad.cache.store import CacheError


def put(folder, dataset, encoder, image_id, age):
    path = write(cache_path(folder, dataset, encoder, image_id))
    os.utime(path, ns=(10**9 - age, 10**9 - age))
    return path


def test_slugs_are_file_names():
    assert [slug(name) for name in ("ViT-B/32", "hf-hub:a/b", "folder:/my data")] == ["vit-b-32", "hf-hub-a-b", "folder-my-data"]


def test_the_folder_is_the_given_one_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIAD_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path and cache_dir(tmp_path / "b") == tmp_path / "b"


def test_the_last_written_is_taken_and_names_narrow_it(tmp_path):
    old = put(tmp_path, "dtd", "ViT-B-32/openai", "11111111", age=9)
    new = put(tmp_path, "pets", "RN50/openai", "22222222", age=1)
    assert find(tmp_path).path == new and find(tmp_path, "dtd").path == old
    assert find(tmp_path, encoder="ViT-B/32").path == old and find(tmp_path, "dtd", "RN50") is None
    assert find(tmp_path, "eurosat") is None


def test_several_matches_are_listed_and_the_full_name_chooses(tmp_path):
    one = put(tmp_path, "dtd", "ViT-B-32/openai", "11111111", age=9)
    put(tmp_path, "dtd", "ViT-B-32/openai", "22222222", age=1)
    with pytest.raises(CacheError, match="vit-b-32-openai-11111111"):
        find(tmp_path, "dtd")
    assert find(tmp_path, "dtd", "vit-b-32-openai-11111111").path == one
