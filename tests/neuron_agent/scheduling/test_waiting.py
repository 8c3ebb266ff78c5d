from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.scheduling.request import Request
from neuron_agent.scheduling.waiting import PATIENCE, WaitingLine


def make_request(name: str, principal: str = "") -> Request:
    return Request(name, (1,), 1, frozenset(), submitted_at=0.0, principal=principal)


def fill(*names: str) -> WaitingLine:
    """A line of requests like "a1": the first of principal a."""
    line = WaitingLine()
    for name in names:
        line.add(make_request(name, name[0]))
    return line


def take_all(line: WaitingLine, running: Counter[str] | None = None) -> list[str]:
    """Admit one after the other; all go on running."""
    running = Counter() if running is None else running
    taken = []
    while line:
        request = line.choose(running)
        line.take(request)
        running[request.principal] += 1
        taken.append(request.request_id)
    return taken


def test_principals_take_turns_and_nobody_overtakes_within_one() -> None:
    assert take_all(fill("a1", "a2", "a3", "b1", "b2")) == ["a1", "b1", "a2", "b2", "a3"]


def test_next_is_whoever_has_fewest_running() -> None:
    line = fill("a1", "b1")
    assert line.choose({"a": 2, "b": 1}).request_id == "b1"
    assert line.choose({"a": 1, "b": 1}).request_id == "a1"


def test_callers_without_a_name_are_one_principal() -> None:
    line = WaitingLine()
    for name, principal in (("1", ""), ("2", ""), ("3", "a")):
        line.add(make_request(name, principal))
    assert take_all(line) == ["1", "3", "2"]


def test_preempted_requests_come_first_the_last_put_back_before_the_others() -> None:
    line = fill("a1")
    line.put_back(make_request("younger", "z"))
    line.put_back(make_request("older", "z"))
    assert take_all(line, Counter(z=5)) == ["older", "younger", "a1"]


def test_removed_requests_are_gone_wherever_they_stood() -> None:
    line = fill("a1", "a2", "a3", "b1")
    back = make_request("back")
    line.put_back(back)
    requests = {request.request_id: request for request in line}
    for name in ("back", "a1", "a3", "b1"):
        line.remove(requests[name])
    assert len(line) == 1
    assert take_all(line) == ["a2"]
    assert not line


def test_impatience_leaves_with_the_one_who_had_it() -> None:
    line = fill("a1", "a2", "c1")
    line._lines["a"].num_passed = PATIENCE
    leader = next(request for request in line if request.request_id == "a1")
    line.remove(leader)
    assert line.choose({"a": 1}).request_id == "c1"


def test_impatience_is_for_one_admission() -> None:
    line = fill("a1", "a2", "c1")
    line._lines["a"].num_passed = PATIENCE
    assert take_all(line, Counter(a=1)) == ["a1", "c1", "a2"]


arrivals = st.lists(st.sampled_from("abcdefgh"), max_size=8)


@given(st.lists(arrivals, min_size=1, max_size=80), st.data())
def test_a_leader_is_passed_over_by_younger_ones_a_bounded_number_of_times(
    rounds: list[list[str]], data: st.DataObject
) -> None:
    line = WaitingLine()
    born: dict[str, int] = {}
    num_passed: Counter[str] = Counter()
    for principals in rounds:
        for principal in principals:
            name = str(len(born))
            born[name] = len(born)
            line.add(make_request(name, principal))
        if not line:
            continue
        running = {name: data.draw(st.integers(0, 3)) for name in "abcdefgh"}
        leaders: dict[str, str] = {}
        for request in line:
            leaders.setdefault(request.principal, request.request_id)
        chosen = line.choose(running)
        assert chosen.request_id == leaders[chosen.principal]
        line.take(chosen)
        for name in leaders.values():
            num_passed[name] += born[name] < born[chosen.request_id]
    assert max(num_passed.values(), default=0) <= PATIENCE


def test_an_endless_stream_of_preferred_ones_does_not_starve_a_leader() -> None:
    line = fill("a1")
    for number in range(PATIENCE + 1):
        line.add(make_request(f"new {number}", f"new {number}"))
        chosen = line.choose({"a": 1})
        line.take(chosen)
        if chosen.request_id == "a1":
            assert number == PATIENCE
            return
    raise AssertionError("starved")
