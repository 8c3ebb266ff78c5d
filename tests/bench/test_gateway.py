"""What makes the comparison fair: nothing of the caller's settings, and no side always second."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The script as a module. It imports its neighbours by their bare names."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    import gateway

    yield gateway
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]


def test_no_setting_of_the_caller_reaches_what_is_measured(bench) -> None:  # type: ignore[no-untyped-def]
    kept = {"PATH": "/bin", "HOME": "/root"}
    settings = {
        "CORTEX_DATABASE_URL": "postgres://production",
        "CORTEX_REDIS_URL": "redis://production",
        "CORTEX_LOAD_WAIT_SECONDS": "1",
        "DATABASE_URL": "postgres://production",
        "REDIS_URL": "redis://production",
        "PROMETHEUS_MULTIPROC_DIR": "/metrics",
        "DJANGO_SETTINGS_MODULE": "other.settings",
    }
    assert bench.without_settings({**kept, **settings}) == kept


def test_each_side_comes_first_in_every_other_round(bench) -> None:  # type: ignore[no-untyped-def]
    assert bench.in_turn(1) == ("relay", "gateway")
    assert bench.in_turn(2) == ("gateway", "relay")
    assert bench.in_turn(3) == bench.in_turn(1)
