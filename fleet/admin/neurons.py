"""Neurons: what they are made of, what is on them, and the operator's switches."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminPasswordWidget

from fleet import services
from fleet.admin.cells import (
    NEURON_COLOURS,
    PLACEMENT_COLOURS,
    ago,
    do_for_each,
    in_gb,
    memory_bar,
    memory_bars,
    neuron_state,
)
from fleet.admin.readonly import ReadOnlyInline
from fleet.models import Device, Neuron, Placement
from fleet.planner.phases import LIVE


class NeuronForm(forms.ModelForm):
    token = forms.CharField(
        required=False,
        strip=True,
        widget=UnfoldAdminPasswordWidget(
            render_value=False, attrs={"autocomplete": "new-password"}
        ),
        help_text=(
            "What Cortex presents to the neuron. Never shown; empty keeps the present one, "
            "unless the endpoint is another host's."
        ),
    )
    remove_token = forms.BooleanField(required=False, help_text="The neuron wants none any more.")

    class Meta:
        model = Neuron
        fields = ("name", "endpoint")


class DeviceInline(ReadOnlyInline):
    model = Device
    fields = ("index", "name", "memory", "utilization_pct", "temp_c", "power_w", "observed")
    readonly_fields = ("memory", "observed")

    @display(description="Memory")
    def memory(self, device: Device) -> SafeString:
        return memory_bar(device)

    @display(description="Seen")
    def observed(self, device: Device) -> str:
        return ago(device.observed_at)


class PlacementInline(ReadOnlyInline):
    model = Placement
    verbose_name_plural = "models here"
    fields = ("profile", "phase_label", "device_indexes", "memory", "in_flight", "queued", "reason")
    readonly_fields = ("phase_label", "memory")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Placement]:
        rows: QuerySet[Placement] = super().get_queryset(request)
        return rows.filter(phase__in=sorted(LIVE)).select_related("profile")

    @display(description="Phase", label=PLACEMENT_COLOURS)
    def phase_label(self, placement: Placement) -> str:
        return placement.phase

    @display(description="Memory")
    def memory(self, placement: Placement) -> str:
        return in_gb(placement.memory_bytes)


@admin.register(Neuron)
class NeuronAdmin(ModelAdmin):
    form = NeuronForm
    inlines = (DeviceInline, PlacementInline)
    list_display = ("name", "state", "memory", "models_here", "endpoint", "version", "seen")
    list_filter = ("phase", "enabled", "cordoned")
    search_fields = ("name", "endpoint", "hostname")
    readonly_fields = (
        "state", "memory", "models_here", "seen", "last_error", "hostname", "version", "driver",
        "cuda", "cuda_unavailable_reason", "harnesses", "models_on_disk", "lifecycle_cycles",
        "faults",
    )  # fmt: skip
    actions = ("enable", "disable", "cordon", "uncordon", "drain")
    fieldsets = (
        (None, {"fields": ("name", "endpoint", "token", "remove_token")}),
        ("State", {"fields": ("state", "memory", "models_here", "seen", "last_error")}),
        (
            "Host",
            {
                "classes": ("tab",),
                "fields": (
                    "hostname", "version", "driver", "cuda", "cuda_unavailable_reason",
                    "harnesses", "models_on_disk", "lifecycle_cycles", "faults",
                ),
            },
        ),
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Neuron]:
        here = Placement.objects.filter(phase__in=sorted(LIVE)).select_related("profile")
        rows: QuerySet[Neuron] = super().get_queryset(request)
        return rows.prefetch_related(
            "devices", Prefetch("placements", here, to_attr="live_placements")
        )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        # A neuron that is being added has not told anything yet.
        return self.fieldsets if obj else self.fieldsets[:1]

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return self.inlines if obj else ()

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return (*self.readonly_fields, "name") if obj else self.readonly_fields

    # --- cells -----------------------------------------------------------------------------------

    @display(description="State", label=NEURON_COLOURS)
    def state(self, neuron: Neuron) -> str:
        return neuron_state(neuron)

    @display(description="Memory in use")
    def memory(self, neuron: Neuron) -> SafeString | str:
        return memory_bars(neuron.devices.all())

    @display(description="Models")
    def models_here(self, neuron: Any) -> str:
        return ", ".join(p.profile.model_id for p in neuron.live_placements) or "–"

    @display(description="Seen", ordering="last_seen_at")
    def seen(self, neuron: Neuron) -> str:
        return ago(neuron.last_seen_at)

    # --- what an operator does -------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: Neuron, form: Any, change: bool) -> None:
        now, actor = timezone.now(), request.user.get_username()
        token = form.cleaned_data["token"] or None
        if not change:
            services.enrol_neuron(obj, token, now, actor)
            return
        is_token_set = bool(token or form.cleaned_data["remove_token"])
        if (
            "endpoint" in form.changed_data
            and services.change_endpoint(obj.pk, obj.endpoint, now, actor)
            and not is_token_set
        ):
            told = (
                "Its token was removed: this is another host. Enter the new host's, if it has one."
            )
            messages.warning(request, told)
        if is_token_set:
            services.set_neuron_token(obj.pk, token, now, actor)

    def delete_model(self, request: HttpRequest, obj: Neuron) -> None:
        services.remove_neuron(obj.pk, timezone.now(), request.user.get_username())

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Neuron]) -> None:
        for neuron in queryset:
            self.delete_model(request, neuron)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Its devices and the history of its placements go with it; what still runs there stays."""
        deleted, counts, _, protected = super().get_deleted_objects(objs, request)
        neurons = {neuron.pk for neuron in objs}
        running = Placement.objects.filter(neuron__in=neurons, phase__in=sorted(LIVE))
        return deleted, counts, set(), [*protected, *map(str, running)]

    @action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Neuron]) -> None:
        now, actor = timezone.now(), request.user.get_username()
        do_for_each(
            request, queryset, lambda n: services.set_enabled(n.pk, True, now, actor), "Enabled"
        )

    @action(description="Disable: neither poll nor use", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Neuron]) -> None:
        now, actor = timezone.now(), request.user.get_username()
        do_for_each(
            request, queryset, lambda n: services.set_enabled(n.pk, False, now, actor), "Disabled"
        )

    @action(description="Cordon: place nothing new", permissions=["change"])
    def cordon(self, request: HttpRequest, queryset: QuerySet[Neuron]) -> None:
        now, actor = timezone.now(), request.user.get_username()
        do_for_each(request, queryset, lambda n: services.cordon(n.pk, now, actor), "Cordoned")

    @action(description="Uncordon: use again", permissions=["change"])
    def uncordon(self, request: HttpRequest, queryset: QuerySet[Neuron]) -> None:
        now, actor = timezone.now(), request.user.get_username()
        do_for_each(request, queryset, lambda n: services.uncordon(n.pk, now, actor), "Uncordoned")

    @action(description="Drain: finish what runs, then unload", permissions=["change"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Neuron]) -> None:
        now, actor = timezone.now(), request.user.get_username()
        do_for_each(request, queryset, lambda n: services.drain(n.pk, now, actor), "Draining")
