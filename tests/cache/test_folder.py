"""Finding the cache that a user means."""

import os
from pathlib import Path

import pytest
from written import write

from cliad.cache.file.layout import CacheError
from cliad.cache.folder import cache_dir, cache_path, cached, find, slug


def put(folder, dataset, encoder, image_id, age):
    path = write(cache_path(folder, dataset, encoder, image_id))
    os.utime(path, ns=(10**9 - age, 10**9 - age))
    return path


@pytest.mark.parametrize(
    "name, file_name",
    [
        ("ViT-B/32", "vit-b-32"),
        ("ViT-B-32/openai", "vit-b-32-openai"),
        ("ViT-L/14@336px", "vit-l-14-336px"),
        ("hf-hub:a/b", "hf-hub-a-b"),
        ("folder:/my data", "folder-my-data"),
        ("csv:../../x.csv", "csv-..-..-x.csv"),
        ("a_b.c", "a_b.c"),
        ("..", "unnamed"),
        (".hidden", "hidden"),
        ("-x-", "x"),
        ("Müller", "m-ller"),
        ("", "unnamed"),
    ],
)
def test_slugs_are_file_names(name, file_name):
    assert slug(name) == file_name


def test_a_cache_lies_under_its_data_set_with_encoder_and_id_in_its_name(tmp_path):
    path = cache_path(tmp_path, "folder:My Pets", "ViT-B-32/openai", "0a1b2c3d")
    assert path == tmp_path / "folder-my-pets" / "vit-b-32-openai-0a1b2c3d.h5"


def test_finished_caches_are_listed_last_written_first(tmp_path):
    old = put(tmp_path, "dtd", "a", "11111111", age=9)
    new = put(tmp_path, "pets", "a", "22222222", age=1)
    same = put(tmp_path, "dtd", "b", "33333333", age=9)
    (tmp_path / "dtd" / "c-44444444.h5.part").write_text("")
    assert cached(tmp_path) == [new, old, same]
    assert cached(tmp_path, "DTD") == [old, same] and cached(tmp_path, "sun397") == []


def test_an_encoder_in_short_is_a_whole_word_of_the_name(tmp_path):
    path = put(tmp_path, "dtd", "ViT-B-32/openai", "11111111", age=1)
    assert find(tmp_path, "dtd", "ViT-B").path == path
    assert find(tmp_path, "dtd", "ViT-B-3") is None and find(tmp_path, "dtd", "openai") is None


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


def test_a_name_of_thousands_of_letters_has_a_folder_and_is_told_from_others():
    one = cache_path(Path("."), "a" * 5000, "e", "0" * 8)
    other = cache_path(Path("."), "a" * 4999 + "b", "e", "0" * 8)
    assert one != other and len(one.parent.name) < 100
