"""Who may come in."""

import pytest

from neuron_agent.http_boundary import is_allowed

TOKEN = "s3cret"


@pytest.mark.parametrize(
    ("peer", "authorization", "allowed"),
    [
        ("127.0.0.1", "", True),
        ("::1", "", True),
        ("::ffff:127.0.0.1", "", True),
        ("10.0.0.1", "", False),
        ("10.0.0.1", "Bearer s3cret", True),
        ("10.0.0.1", "bearer s3cret", True),
        ("10.0.0.1", "Bearer s3cre", False),
        ("10.0.0.1", "Bearer s3crett", False),
        ("10.0.0.1", "Basic s3cret", False),
        ("10.0.0.1", "s3cret", False),
        ("10.0.0.1", "Bearer ü", False),
        (None, "", False),
        (None, "Bearer s3cret", True),
    ],
)
def test_strangers_show_the_token_and_this_host_does_not(
    peer: str | None, authorization: str, allowed: bool
) -> None:
    assert is_allowed(peer, authorization, TOKEN) is allowed


def test_without_a_token_the_port_is_loopback_s_and_open() -> None:
    assert is_allowed("127.0.0.1", "", None)
