"""Admin pages of the inference app: request records, to read only."""

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from inference.models import RequestRecord


@admin.register(RequestRecord)
class RequestRecordAdmin(ModelAdmin):
    list_display = (
        "at",
        "requested_model",
        "neuron",
        "status",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "time_to_first_token",
        "speed",
        "latency",
        "cold_start",
    )
    list_filter = ("model", "neuron", "status", "streaming", "cold_start", "finish_reason")
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

    @admin.display(description="TTFT", ordering="ttft_seconds")
    def time_to_first_token(self, record: RequestRecord) -> str:
        return _seconds(record.ttft_seconds)

    @admin.display(description="tok/s", ordering="tokens_per_second")
    def speed(self, record: RequestRecord) -> str:
        rate = record.tokens_per_second
        return "–" if rate is None else f"{rate:.1f}"

    @admin.display(description="latency", ordering="latency_seconds")
    def latency(self, record: RequestRecord) -> str:
        return _seconds(record.latency_seconds)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
