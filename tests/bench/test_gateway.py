"""What makes the comparison fair: no side always second, and ratios of what was measured."""

import gateway
import pytest
from clients import CHAT, Measured
from gateway_sides import Process, Side

RELAY, CORTEX = (Side(name, Process(0, 0), CHAT) for name in ("relay", "cortex_chat"))


def test_each_side_comes_first_in_every_other_round() -> None:
    assert gateway.in_turn(1, (RELAY, CORTEX)) == (RELAY, CORTEX)
    assert gateway.in_turn(2, (RELAY, CORTEX)) == (CORTEX, RELAY)
    assert gateway.in_turn(3, (RELAY, CORTEX)) == (RELAY, CORTEX)


def test_a_run_with_a_failed_request_ends_the_benchmark() -> None:
    assert gateway.checked(RELAY, Measured(num_requests=3)).num_requests == 3
    with pytest.raises(SystemExit, match="relay: 1 requests failed"):
        gateway.checked(RELAY, Measured(num_requests=3, num_errors=1))


def test_a_stream_is_as_long_as_asked() -> None:
    pace = gateway.stream_pace(4.0)
    assert pace.num_tokens * pace.interval_ms == 4_000


def test_litellm_is_compared_by_medians_with_the_same_dialect() -> None:
    results = gateway.Results()
    for side, us in (
        ("cortex_chat", 10.0),
        ("litellm_chat", 400.0),
        ("cortex_messages", 2.0),
        ("litellm_messages", 50.0),
    ):
        results.added_ttft[32][side] += [us, us, 100 * us]
        results.per_request[side] += [us, 2 * us, 3 * us]
        results.per_chunk[32][side].append(us)
    assert gateway.times_litellm(results.summary()) == {
        dialect: {
            "added_ttft": {"32": times},
            "cpu_per_request": times,
            "cpu_per_chunk": {"32": times},
        }
        for dialect, times in (("chat", 40.0), ("messages", 25.0))
    }


def test_without_litellm_nothing_is_compared_with_it() -> None:
    results = gateway.Results()
    results.per_request["cortex_chat"].append(1.0)
    assert gateway.times_litellm(results.summary()) == {}


def test_where_litellm_cannot_be_had_a_line_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: object) -> None:
        raise gateway.gateway_litellm.CannotInstall("no network")

    monkeypatch.setattr(gateway.gateway_litellm, "installed", fail)
    assert gateway.find_litellm() is None
    assert "no network" in capsys.readouterr().out
