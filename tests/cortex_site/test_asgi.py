import pytest

from cortex_site import asgi


@pytest.mark.parametrize(
    ("path", "accept", "is_for_gateway"),
    [
        ("/v1/models", b"text/html", True),
        ("/v1", b"*/*", True),
        ("/health", b"text/html", True),
        ("/", b"application/json", True),
        ("/", b"text/html,application/xhtml+xml", False),
        ("/admin/", b"*/*", False),
        ("/v10", b"*/*", False),
        ("//v1/models", b"*/*", True),
        ("//admin/", b"*/*", False),
    ],
)
def test_the_api_is_the_gateways_and_pages_are_djangos(path, accept, is_for_gateway):
    scope = {"type": "http", "path": path, "headers": [(b"accept", accept)]}
    assert asgi._is_for_gateway(scope) is is_for_gateway
