"""Nothing recorded is lost while the database comes back in time, and nothing ever waits for it."""

from datetime import UTC, datetime

import pytest
from django.db import DataError, IntegrityError

from inference import recorder as recorder_module
from inference.models import RequestRecord
from inference.recorder import Recorder
from inference.request_facts import RequestFacts
from neuron_agent.protocol import Usage
from tests.inference.world import RecordedPort, eventually


def some_facts(request_id: str = "r", placement: int | None = 7, **changes: object) -> RequestFacts:
    """Of a request that took half a second."""
    return RequestFacts(
        request_id,
        "chat",
        arrived_at=datetime.now(UTC),
        began=1.0,
        ended=1.5,
        placement_id=placement,
        status=200,
        **changes,
    )


async def test_records_are_written_in_batches_and_the_last_use_told() -> None:
    port = RecordedPort()
    recorder = Recorder(port, flush_seconds=0.01)
    recorder.start()
    for number in range(3):
        recorder.add(some_facts(str(number)))
    await eventually(lambda: len(port.records) == 3)
    assert [record.request_id for record in port.records] == ["0", "1", "2"]
    await eventually(lambda: 7 in port.used)
    assert port.used[7] > port.records[-1].at
    await recorder.stop()


async def test_a_request_is_recorded_after_it_was_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    observed: list[RequestRecord] = []
    monkeypatch.setattr(recorder_module.metrics, "observe", observed.append)
    recorder = Recorder(RecordedPort(), flush_seconds=3600)
    recorder.add(some_facts("1"))
    recorder.add(some_facts("2"))
    assert not observed
    await eventually(lambda: len(observed) == 2)
    recorder.add(some_facts("3"))
    await eventually(lambda: len(observed) == 3)
    assert [record.request_id for record in observed] == ["1", "2", "3"]


async def test_what_could_not_be_written_is_written_later_in_order() -> None:
    port = RecordedPort(fail_store=True)
    recorder = Recorder(port, flush_seconds=3600)
    recorder.add(some_facts("1"))
    assert not await recorder.flush()
    recorder.add(some_facts("2"))
    port.fail_store = False
    assert await recorder.flush()
    assert [record.request_id for record in port.records] == ["1", "2"]


async def test_stopping_writes_what_is_left_even_if_the_database_stumbles() -> None:
    class Stumbling(RecordedPort):
        async def store_records(self, records):  # type: ignore[no-untyped-def]
            if not self.calls:
                self.calls.append(("stumble", ""))
                raise OSError("busy")
            await super().store_records(records)

    port = Stumbling()
    recorder = Recorder(port, flush_seconds=3600)
    recorder.start()
    recorder.add(some_facts())
    await recorder.stop()
    assert len(port.records) == 1


async def test_stopping_without_a_database_ends_and_says_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "STOP_SECONDS", 0.05)
    recorder = Recorder(RecordedPort(fail_store=True), flush_seconds=3600)
    recorder.start()
    recorder.add(some_facts())
    await recorder.stop()
    assert "1 request records were lost" in caplog.text


async def test_what_comes_during_the_last_write_is_written_too() -> None:
    class Slow(RecordedPort):
        async def note_used(self, last_used_by_placement):  # type: ignore[no-untyped-def]
            if len(self.records) == 1:
                recorder.add(some_facts("late"))
            await super().note_used(last_used_by_placement)

    port = Slow()
    recorder = Recorder(port, flush_seconds=3600)
    recorder.start()
    recorder.add(some_facts("1"))
    await recorder.stop()
    assert [record.request_id for record in port.records] == ["1", "late"]


async def test_facts_that_make_no_record_do_not_take_others_with_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[int] = []
    monkeypatch.setattr(recorder_module.metrics, "count_lost_records", lost.append)
    port = RecordedPort()
    recorder = Recorder(port, flush_seconds=3600)
    for name, began in (("1", 1.0), ("2", None), ("3", 1.0)):
        facts = some_facts(name)
        facts.began = began  # type: ignore[assignment]
        recorder.add(facts)
    assert await recorder.flush()
    assert [record.request_id for record in port.records] == ["1", "3"]
    assert sum(lost) == 1
    assert "could not be recorded" in caplog.text


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_QUEUED", 2)
    port = RecordedPort()
    recorder = Recorder(port, flush_seconds=3600)
    for number in range(3):
        recorder.add(some_facts(str(number)))
    await recorder.flush()
    assert [record.request_id for record in port.records] == ["0", "1"]


async def test_a_large_queue_is_written_in_several_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_BATCH", 4)
    port = RecordedPort()
    recorder = Recorder(port, flush_seconds=3600)
    for number in range(10):
        recorder.add(some_facts(str(number)))
    assert await recorder.flush()
    assert len(port.records) == 10


class Choosy(RecordedPort):
    """A database that does not take every record."""

    async def store_records(self, records):  # type: ignore[no-untyped-def]
        if any(record.request_id.startswith("bad") for record in records):
            raise REFUSALS[0]
        await super().store_records(records)


REFUSALS: list[Exception] = []


@pytest.mark.parametrize(
    "refusal", [DataError("x"), IntegrityError("x"), OverflowError("x"), ValueError("x")]
)
async def test_a_record_the_database_refuses_is_dropped_and_the_others_written(
    refusal: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    monkeypatch.setattr(recorder_module.metrics, "count_lost_records", lost.append)
    REFUSALS[:] = [refusal]
    port = Choosy()
    recorder = Recorder(port, flush_seconds=3600)
    for request_id in ("1", "bad", "2", "bad too", "3"):
        recorder.add(some_facts(request_id))
    assert await recorder.flush()
    assert [record.request_id for record in port.records] == ["1", "2", "3"]
    assert sum(lost) == 2
    assert caplog.text.count("refused a request record") == 1


async def test_a_database_that_goes_away_among_refused_records_is_waited_for() -> None:
    class Vanishing(RecordedPort):
        async def store_records(self, records):  # type: ignore[no-untyped-def]
            if len(records) > 1:
                raise DataError("one of them")
            await super().store_records(records)
            self.fail_store = len(self.records) == 1

    port = Vanishing()
    recorder = Recorder(port, flush_seconds=3600)
    for number in range(3):
        recorder.add(some_facts(str(number)))
    assert not await recorder.flush()
    port.fail_store = False
    assert await recorder.flush()
    assert [record.request_id for record in port.records] == ["0", "1", "2"]


async def test_a_record_that_cannot_be_counted_is_kept_all_the_same() -> None:
    port = RecordedPort()
    recorder = Recorder(port, flush_seconds=3600)
    recorder.add(some_facts(model="m", usage=Usage(-1, 1, 0, 0)))
    await recorder.flush()
    assert len(port.records) == 1
