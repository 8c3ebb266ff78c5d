"""Admin pages of the inference app: request records, to read only."""

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import display

from inference.models import RequestRecord
from inference.request_facts import CLIENT_LEFT

STATUS_COLOURS = {"2xx": "success", "4xx": "warning", "5xx": "danger", "left": "info"}


@admin.register(RequestRecord)
class RequestRecordAdmin(ModelAdmin):
    list_display = (
        "arrived",
        "requested_model",
        "neuron",
        "answer",
        "tokens",
        "time_to_first_token",
        "speed",
        "latency",
        "start",
    )
    list_filter = (
        "model",
        "neuron",
        "dialect",
        "status",
        "streaming",
        "cold_start",
        "finish_reason",
    )
    search_fields = ("request_id", "requested_model", "error_code", "client_address")
    date_hierarchy = "at"
    ordering = ("-at",)
    show_full_result_count = False  # counting millions of rows would hold up the page

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: RequestRecord | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: RequestRecord | None = None) -> bool:
        return False

    @display(description="At", ordering="at")
    def arrived(self, record: RequestRecord) -> str:
        return f"{timezone.localtime(record.at):%Y-%m-%d %H:%M:%S}"

    @display(description="Status", ordering="status", label=STATUS_COLOURS)
    def answer(self, record: RequestRecord) -> tuple[str, str]:
        how = record.error_code or record.finish_reason
        told = f"{record.status} {how}".strip()
        return ("left" if record.status == CLIENT_LEFT else f"{record.status // 100}xx"), told

    @display(description="Tokens in, out")
    def tokens(self, record: RequestRecord) -> str:
        if record.prompt_tokens is None:
            return "–"
        return f"{record.prompt_tokens}, {record.completion_tokens}"

    @display(description="Start", ordering="cold_start", label={"cold": "info"})
    def start(self, record: RequestRecord) -> str:
        return "cold" if record.cold_start else ""

    @display(description="TTFT", ordering="ttft_seconds")
    def time_to_first_token(self, record: RequestRecord) -> str:
        return _seconds(record.ttft_seconds)

    @display(description="Tok/s", ordering="tokens_per_second")
    def speed(self, record: RequestRecord) -> str:
        rate = record.tokens_per_second
        return "–" if rate is None else f"{rate:.1f}"

    @display(description="Latency", ordering="latency_seconds")
    def latency(self, record: RequestRecord) -> str:
        return _seconds(record.latency_seconds)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    # A space that does not break: the unit stays with its number.
    return (
        f"{seconds * 1000:.0f}\N{NO-BREAK SPACE}ms"
        if seconds < 1
        else f"{seconds:.2f}\N{NO-BREAK SPACE}s"
    )
