"""What the control plane wrote: placements, events and demands. Read-only."""

import json
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from fleet import services
from fleet.admin.cells import PLACEMENT_COLOURS, ago, bar, do_for_each, in_gb
from fleet.admin.readonly import ReadOnlyAdmin
from fleet.models import Demand, EventKind, FleetEvent, Placement
from fleet.planner.phases import ARRIVING, LIVE
from fleet.selectors import refusals_from_rows
from fleet.wording import in_words


class LiveFilter(admin.SimpleListFilter):
    title = "still there"
    parameter_name = "live"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Yes"), ("no", "No")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Placement]) -> QuerySet[Placement]:
        if self.value() == "yes":
            return queryset.filter(phase__in=sorted(LIVE))
        if self.value() == "no":
            return queryset.exclude(phase__in=sorted(LIVE))
        return queryset


@admin.register(Placement)
class PlacementAdmin(ModelAdmin):
    list_display = (
        "profile", "neuron", "phase_label", "progress", "memory", "load", "used", "why",
    )  # fmt: skip
    list_filter = (LiveFilter, "phase", "neuron")
    list_select_related = ("profile", "neuron")
    search_fields = ("profile__model_id", "neuron__name", "reason", "error")
    actions = ("unload",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Whoever may change placements may run actions on them; a row itself nobody edits.
        return obj is None and super().has_change_permission(request)

    @display(description="Phase", label=PLACEMENT_COLOURS, ordering="phase")
    def phase_label(self, placement: Placement) -> str:
        return placement.phase

    @display(description="Progress")
    def progress(self, placement: Placement) -> SafeString | str:
        if placement.phase not in ARRIVING:
            return "–"
        return bar(placement.percent, f"{placement.percent:.0f} % {placement.stage}")

    @display(description="Memory", ordering="memory_bytes")
    def memory(self, placement: Placement) -> str:
        return in_gb(placement.memory_bytes) + ("" if placement.memory_measured else " reserved")

    @display(description="In flight + queued")
    def load(self, placement: Placement) -> str:
        return f"{placement.in_flight} + {placement.queued}"

    @display(description="Last used", ordering="last_used_at")
    def used(self, placement: Placement) -> str:
        return ago(placement.last_used_at)

    @display(description="Why")
    def why(self, placement: Placement) -> str:
        return placement.error or placement.reason or "–"

    @action(description="Unload", permissions=["change"])
    def unload(self, request: HttpRequest, queryset: QuerySet[Placement]) -> None:
        now, actor = timezone.now(), request.user.get_username()
        do_for_each(
            request,
            queryset.select_related("profile", "neuron"),
            lambda placement: services.request_unload_of(placement.pk, now, actor),
            "Unload requested",
        )


@admin.register(FleetEvent)
class FleetEventAdmin(ReadOnlyAdmin):
    list_display = ("when", "kind_label", "message", "model", "neuron", "actor")
    list_filter = ("kind", "neuron", "model")
    search_fields = ("message", "model", "neuron", "actor")
    date_hierarchy = "at"
    fields = ("at", "kind", "message", "model", "neuron", "placement", "actor", "reasons")
    readonly_fields = ("reasons",)
    show_full_result_count = False

    @display(description="At", ordering="at")
    def when(self, event: FleetEvent) -> SafeString:
        moment = timezone.localtime(event.at).strftime("%Y-%m-%d %H:%M:%S")
        return format_html('<span style="white-space:nowrap">{}</span>', moment)

    @display(
        description="Kind",
        label={
            EventKind.PHASE.value: "info",
            EventKind.DECISION.value: "success",
            EventKind.NEURON.value: "warning",
            EventKind.OPERATOR.value: "primary",
        },
        ordering="kind",
    )
    def kind_label(self, event: FleetEvent) -> tuple[str, str]:
        return event.kind, event.get_kind_display()

    @display(description="Reasons")
    def reasons(self, event: FleetEvent) -> SafeString:
        text = json.dumps(event.data, indent=2, sort_keys=True)
        return format_html('<pre style="white-space:pre-wrap">{}</pre>', text)


@admin.register(Demand)
class DemandAdmin(ReadOnlyAdmin):
    list_display = ("profile", "num_waiting", "source", "on_neuron", "waiting_since", "answer")
    list_select_related = ("profile", "on_neuron")
    search_fields = ("profile__model_id", "source")
    exclude = ("verdict",)
    readonly_fields = ("answer",)

    @display(description="Since", ordering="since")
    def waiting_since(self, demand: Demand) -> str:
        return ago(demand.since)

    @display(description="Answer")
    def answer(self, demand: Demand) -> str:
        if demand.verdict is None:
            return "–"
        told = in_words(refusals_from_rows(demand.verdict["refusals"]))
        return f"{demand.verdict['kind']}: {told}"
