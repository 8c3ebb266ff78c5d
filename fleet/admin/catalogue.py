"""Model profiles and aliases: what may be served, and the operator's load and unload."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from fleet import services
from fleet.admin.cells import PLACEMENT_COLOURS, ago, do_for_each, in_gb
from fleet.admin.readonly import ReadOnlyInline
from fleet.models import Alias, ModelProfile, Placement
from fleet.planner.phases import LIVE


class WhereInline(ReadOnlyInline):
    model = Placement
    verbose_name_plural = "where it is"
    fields = ("neuron", "phase_label", "device_indexes", "memory", "in_flight", "queued", "used")
    readonly_fields = ("phase_label", "memory", "used")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Placement]:
        rows: QuerySet[Placement] = super().get_queryset(request)
        return rows.filter(phase__in=sorted(LIVE)).select_related("neuron")

    @display(description="Phase", label=PLACEMENT_COLOURS)
    def phase_label(self, placement: Placement) -> str:
        return placement.phase

    @display(description="Memory")
    def memory(self, placement: Placement) -> str:
        return in_gb(placement.memory_bytes)

    @display(description="Last used")
    def used(self, placement: Placement) -> str:
        return ago(placement.last_used_at)


@admin.register(ModelProfile)
class ModelProfileAdmin(ModelAdmin):
    inlines = (WhereInline,)
    list_display = ("model_id", "where", "memory", "devices", "priority", "load_time", "enabled")
    list_filter = ("enabled", "pinned", "harness", "discovered")
    search_fields = ("model_id", "source")
    filter_horizontal = ("pinned_on",)
    readonly_fields = (
        "learned", "load_time", "limit_context", "limit_output", "capabilities", "tool_call",
        "reasoning", "discovered", "quarantined",
    )  # fmt: skip
    actions = ("load", "unload")
    fieldsets = (
        (None, {"fields": ("model_id", "source", "revision", "harness", "enabled")}),
        (
            "What it needs",
            {
                "classes": ("tab",),
                "fields": (
                    "quant", "dtype", "max_context", "vram_mb", "min_devices",
                    "min_device_vram_mb", "pinned_on",
                ),
            },
        ),
        (
            "Residency",
            {
                "classes": ("tab",),
                "fields": (
                    "pinned", "residency_priority", "min_placements", "max_placements",
                    "idle_ttl_seconds",
                ),
            },
        ),
        ("Price", {"classes": ("tab",), "fields": ("cost_input", "cost_output")}),
        (
            "Learned",
            {
                "classes": ("tab",),
                "fields": readonly_fields,
            },
        ),
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelProfile]:
        here = Placement.objects.filter(phase__in=sorted(LIVE)).select_related("neuron")
        rows: QuerySet[ModelProfile] = super().get_queryset(request)
        return rows.prefetch_related(Prefetch("placements", here, to_attr="live_placements"))

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        # Of a model that is being added nothing has been learned.
        return self.fieldsets if obj else self.fieldsets[:-1]

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return self.inlines if obj else ()

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return (*self.readonly_fields, "model_id") if obj else self.readonly_fields

    # --- cells -----------------------------------------------------------------------------------

    @display(description="Where", label=PLACEMENT_COLOURS)
    def where(self, profile: Any) -> tuple[str, str] | str:
        placements = profile.live_placements
        if not placements:
            return "not loaded"
        told = ", ".join(f"{p.phase} on {p.neuron.name}" for p in placements)
        return placements[0].phase, told

    @display(description="Memory")
    def memory(self, profile: ModelProfile) -> str:
        if profile.learned_bytes is not None and profile.learned_for == profile.options_key:
            return in_gb(profile.learned_bytes)
        if profile.vram_mb is not None:
            return f"{in_gb(profile.vram_mb * 2**20)} declared"
        if profile.estimated_bytes is not None:
            return f"{in_gb(profile.estimated_bytes)} estimated"
        return "not known yet"

    @display(description="Devices", ordering="min_devices")
    def devices(self, profile: ModelProfile) -> int:
        return profile.min_devices

    @display(description="Priority", ordering="residency_priority")
    def priority(self, profile: ModelProfile) -> str:
        return f"{profile.residency_priority}{', pinned' if profile.pinned else ''}"

    @display(description="Load time", ordering="load_seconds")
    def load_time(self, profile: ModelProfile) -> str:
        return "–" if profile.load_seconds is None else f"{profile.load_seconds:.1f} s"

    @display(description="Measured memory")
    def learned(self, profile: ModelProfile) -> str:
        return in_gb(profile.learned_bytes)

    # --- what an operator does -------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: ModelProfile, form: Any, change: bool) -> None:
        services.save_profile(obj)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        services.profile_pins_changed()

    def delete_model(self, request: HttpRequest, obj: ModelProfile) -> None:
        services.remove_profile(obj.pk, timezone.now(), request.user.get_username())

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ModelProfile]) -> None:
        for profile in queryset:
            self.delete_model(request, profile)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Its aliases and history go with it; a model that is loaded somewhere stays."""
        deleted, counts, _, protected = super().get_deleted_objects(objs, request)
        profiles = {profile.pk for profile in objs}
        running = Placement.objects.filter(profile__in=profiles, phase__in=sorted(LIVE))
        return deleted, counts, set(), [*protected, *map(str, running)]

    @action(description="Load where it fits best", permissions=["change"])
    def load(self, request: HttpRequest, queryset: QuerySet[ModelProfile]) -> None:
        now, actor = timezone.now(), request.user.get_username()
        do_for_each(
            request,
            queryset,
            lambda profile: services.request_load(profile.model_id, None, now, actor),
            "Load requested",
        )

    @action(description="Unload everywhere", permissions=["change"])
    def unload(self, request: HttpRequest, queryset: QuerySet[ModelProfile]) -> None:
        now, actor = timezone.now(), request.user.get_username()
        do_for_each(
            request,
            queryset,
            lambda profile: services.request_unload(profile.model_id, None, now, actor),
            "Unload requested",
        )


class AliasForm(forms.ModelForm):
    class Meta:
        model = Alias
        fields = ("name", "profile")

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if ModelProfile.objects.filter(model_id=name).exists():
            raise forms.ValidationError("A model of the catalogue has this name.")
        return name


@admin.register(Alias)
class AliasAdmin(ModelAdmin):
    form = AliasForm
    list_display = ("name", "profile")
    list_select_related = ("profile",)
    search_fields = ("name", "profile__model_id")
    autocomplete_fields = ("profile",)

    def save_model(self, request: HttpRequest, obj: Alias, form: Any, change: bool) -> None:
        services.save_alias(obj)

    def delete_model(self, request: HttpRequest, obj: Alias) -> None:
        services.remove_alias(obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Alias]) -> None:
        for alias in queryset:
            services.remove_alias(alias.pk)
