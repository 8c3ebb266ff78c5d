import pytest

from fleet.token_vault import decrypt_token, encrypt_token


def test_a_token_comes_back_and_is_not_in_what_is_stored() -> None:
    stored = encrypt_token("s3cret")
    assert stored is not None
    assert b"s3cret" not in stored
    assert decrypt_token(memoryview(stored)) == "s3cret"


def test_no_token_is_none() -> None:
    assert encrypt_token(None) is None
    assert encrypt_token("") is None
    assert decrypt_token(None) is None


def test_a_token_of_another_secret_key_is_unreadable_and_said_so(
    settings, caplog: pytest.LogCaptureFixture
) -> None:
    stored = encrypt_token("s3cret")
    settings.SECRET_KEY = "another key that is long enough"
    assert decrypt_token(stored) is None
    assert "CORTEX_SECRET_KEY" in caplog.text
