from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from cortex_site import env

NAME = "CORTEX_TEST_VALUE"


@pytest.fixture
def value(monkeypatch):
    return lambda text: monkeypatch.setenv(NAME, text)


@pytest.mark.parametrize(("text", "meaning"), [("yes", True), ("0", False), ("TRUE", True)])
def test_words_for_true_and_false_are_understood(value, text, meaning):
    value(text)
    assert env.env_bool(NAME, not meaning) is meaning


@pytest.mark.parametrize("text", ["maybe", "2", "tru"])
def test_another_word_is_refused_with_the_variable_named(value, text):
    value(text)
    with pytest.raises(ImproperlyConfigured, match=NAME):
        env.env_bool(NAME, True)


@pytest.mark.parametrize("text", ["99999", "0", "x", "1.5", "-1"])
def test_a_port_must_be_a_whole_number_in_range(value, text):
    value(text)
    with pytest.raises(ImproperlyConfigured, match=NAME):
        env.env_int(NAME, 1, minimum=1, maximum=65535)


def test_an_empty_variable_means_the_default(value):
    value("  ")
    assert env.env_int(NAME, 7, minimum=1, maximum=9) == 7
    assert env.env_list(NAME, ["a"]) == ["a"]
    assert env.env_url(NAME, frozenset({"redis"})) is None


@pytest.mark.parametrize("text", ["http://x", "redis:/x", "redis://", "x"])
def test_a_url_must_have_a_known_scheme_and_a_rest(value, text):
    value(text)
    with pytest.raises(ImproperlyConfigured, match=NAME):
        env.env_url(NAME, frozenset({"redis"}))


def test_a_made_secret_is_kept_and_private(tmp_path: Path):
    path = tmp_path / "folder" / "key"
    first = env.env_secret(NAME, path)
    assert len(first) >= 48
    assert env.env_secret(NAME, path) == first
    assert path.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


def test_a_short_secret_is_refused_and_not_shown(value, tmp_path: Path):
    value("hunter2")
    with pytest.raises(ImproperlyConfigured) as caught:
        env.env_secret(NAME, tmp_path / "key")
    assert "hunter2" not in str(caught.value)


def test_an_unwritable_data_folder_is_explained(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ImproperlyConfigured, match="CORTEX_DATA"):
        env.env_secret(NAME, tmp_path / "file" / "key")
