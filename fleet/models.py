"""The rows of the fleet: what operators want, what neurons reported, what was decided and why.

Columns and constraints only. Nothing here saves, decides or talks to a neuron: phases change in
`services`, by compare-and-set, and every change leaves a FleetEvent.
"""

from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q

from fleet.planner.phases import LIVE, NeuronPhase, PlacementPhase
from fleet.planner.snapshot import DEFAULT_RESIDENCY_PRIORITY

name_validator = RegexValidator(
    r"^[A-Za-z0-9][A-Za-z0-9._/:@+-]*$",
    "Use letters, digits and . _ / : @ + - only, starting with a letter or a digit.",
)
# Django's own check of URLs refuses the bare host names of private networks.
endpoint_validator = RegexValidator(
    r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?\Z",
    "Use http:// or https://, a host, and a port if it is not the usual one; no path.",
)


def choices(enum: type) -> list[tuple[str, str]]:
    return [(str(member), str(member).replace("_", " ")) for member in enum]  # type: ignore[attr-defined]


class Neuron(models.Model):
    """A GPU host's daemon. Its hardware is discovered, never configured."""

    name = models.CharField(max_length=100, unique=True, validators=[name_validator])
    endpoint = models.CharField(
        max_length=300,
        validators=[endpoint_validator],
        help_text="For example http://beast.internal:13131",
    )
    token_encrypted = models.BinaryField(null=True, blank=True, editable=False)
    enabled = models.BooleanField(default=True, help_text="Off: neither polled nor used.")
    cordoned = models.BooleanField(default=False, help_text="Nothing new is placed there.")
    draining = models.BooleanField(
        default=False, help_text="Nothing new, and what runs there is unloaded when it is done."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    # Observed, by polls.
    phase = models.CharField(
        max_length=20, choices=choices(NeuronPhase), default=NeuronPhase.UNKNOWN, editable=False
    )
    phase_since = models.DateTimeField(null=True, editable=False)
    last_seen_at = models.DateTimeField(null=True, editable=False)
    last_error = models.CharField(max_length=500, blank=True, editable=False)
    num_missed_polls = models.PositiveIntegerField(default=0, editable=False)
    boot_id = models.CharField(max_length=64, blank=True, editable=False)
    hostname = models.CharField(max_length=200, blank=True, editable=False)
    version = models.CharField(max_length=50, blank=True, editable=False)
    driver = models.CharField(max_length=50, blank=True, editable=False)
    cuda = models.CharField(max_length=50, blank=True, editable=False)
    cuda_unavailable_reason = models.CharField(max_length=300, blank=True, editable=False)
    harnesses = models.JSONField(default=list, editable=False)
    models_on_disk = models.JSONField(default=list, editable=False)
    lifecycle_cycles = models.PositiveIntegerField(default=0, editable=False)
    faults = models.JSONField(default=list, editable=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Device(models.Model):
    """One GPU (or the CPU) of a neuron, as last reported."""

    neuron = models.ForeignKey(Neuron, on_delete=models.CASCADE, related_name="devices")
    index = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=200)
    kind = models.CharField(max_length=10)
    total_bytes = models.BigIntegerField()
    used_bytes = models.BigIntegerField(default=0)
    free_bytes = models.BigIntegerField(default=0)
    compute_capability = models.CharField(max_length=20, blank=True)
    utilization_pct = models.PositiveSmallIntegerField(null=True)
    temp_c = models.SmallIntegerField(null=True)
    power_w = models.FloatField(null=True)
    usable = models.BooleanField(default=True)
    trouble = models.CharField(
        max_length=20, blank=True, help_text="poisoned, hung, restarting or given up"
    )
    observed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("neuron", "index")
        constraints = [
            models.UniqueConstraint(fields=("neuron", "index"), name="device_index_once"),
        ]

    def __str__(self) -> str:
        return f"{self.neuron} #{self.index} {self.name}"


class Harness(models.TextChoices):
    TORCH = "torch", "torch (in the neuron)"
    OPENAI = "openai", "an OpenAI-compatible server"


class ModelProfile(models.Model):
    """A catalogue row: how to serve a model, what it needs, what it may displace."""

    model_id = models.CharField(
        max_length=200,
        unique=True,
        validators=[name_validator],
        help_text="What clients ask for: a repository id such as Qwen/Qwen3-8B, or a name.",
    )
    source = models.CharField(
        max_length=500,
        blank=True,
        help_text="A folder on the neuron's host or another repository id; empty: the id itself.",
    )
    revision = models.CharField(max_length=100, blank=True)
    harness = models.CharField(max_length=20, choices=Harness.choices, default=Harness.TORCH)
    quant = models.CharField(max_length=20, blank=True)
    dtype = models.CharField(max_length=20, blank=True)
    max_context = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Tokens."
    )
    vram_mb = models.PositiveIntegerField(
        "VRAM (MB)", null=True, blank=True, help_text="What it needs in all, if you know better."
    )
    min_devices = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(64)],
        help_text="The tensor-parallel size.",
    )
    min_device_vram_mb = models.PositiveIntegerField("VRAM per device (MB)", default=0)
    pinned_on = models.ManyToManyField(
        Neuron, blank=True, related_name="pinned_models", help_text="May run here only; none: any."
    )
    pinned = models.BooleanField(default=False, help_text="Never evicted for another model.")
    residency_priority = models.IntegerField(
        default=DEFAULT_RESIDENCY_PRIORITY,
        help_text="May displace models of the same or a lower priority.",
    )
    min_placements = models.PositiveSmallIntegerField(default=0)
    max_placements = models.PositiveSmallIntegerField(null=True, blank=True)
    idle_ttl_seconds = models.PositiveIntegerField(null=True, blank=True)
    cost_input = models.DecimalField(
        max_digits=12, decimal_places=6, null=True, blank=True, help_text="USD per million tokens."
    )
    cost_output = models.DecimalField(
        max_digits=12, decimal_places=6, null=True, blank=True, help_text="USD per million tokens."
    )
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    # Learned.
    discovered = models.BooleanField(
        default=False, editable=False, help_text="Found on a neuron, not entered by an operator."
    )
    quarantined = models.BooleanField(default=False, editable=False)
    learned_bytes = models.BigIntegerField(null=True, editable=False)
    learned_for = models.CharField(
        max_length=200,
        blank=True,
        editable=False,
        help_text="The options `learned_bytes` was measured with; others make it void.",
    )
    estimated_bytes = models.BigIntegerField(null=True, editable=False)
    load_seconds = models.FloatField(
        null=True, editable=False, help_text="Moving average of its measured loads."
    )
    capabilities = models.JSONField(default=list, editable=False)
    limit_context = models.PositiveIntegerField(null=True, editable=False)
    limit_input = models.PositiveIntegerField(null=True, editable=False)
    limit_output = models.PositiveIntegerField(null=True, editable=False)
    tool_call = models.BooleanField(default=False, editable=False)
    reasoning = models.BooleanField(default=False, editable=False)

    class Meta:
        ordering = ("model_id",)

    def __str__(self) -> str:
        return self.model_id

    @property
    def options_key(self) -> str:
        """Names the options that a measured footprint depends on."""
        return f"{self.revision}|{self.quant}|{self.dtype}|{self.max_context}|{self.min_devices}"


class Alias(models.Model):
    """Another name clients may use for a model."""

    name = models.CharField(max_length=200, unique=True, validators=[name_validator])
    profile = models.ForeignKey(ModelProfile, on_delete=models.CASCADE, related_name="aliases")

    class Meta:
        ordering = ("name",)
        verbose_name_plural = "aliases"

    def __str__(self) -> str:
        return f"{self.name} -> {self.profile}"


class Desired(models.TextChoices):
    PRESENT = "present"
    ABSENT = "absent"


class Placement(models.Model):
    """One copy of a model on devices of one neuron, wanted or running."""

    profile = models.ForeignKey(ModelProfile, on_delete=models.CASCADE, related_name="placements")
    neuron = models.ForeignKey(Neuron, on_delete=models.CASCADE, related_name="placements")
    device_indexes = models.JSONField(default=list)
    phase = models.CharField(
        max_length=20, choices=choices(PlacementPhase), default=PlacementPhase.PENDING
    )
    phase_since = models.DateTimeField()
    desired = models.CharField(max_length=10, choices=Desired.choices, default=Desired.PRESENT)
    generation = models.PositiveIntegerField(
        default=0, help_text="Counts the changes of phase: who acts on an old one does nothing."
    )
    reason = models.CharField(max_length=300, blank=True)
    error_code = models.CharField(max_length=50, blank=True)
    error = models.CharField(max_length=1000, blank=True)
    memory_bytes = models.BigIntegerField(
        default=0, help_text="On all its devices: measured once ready, reserved before that."
    )
    memory_measured = models.BooleanField(default=False)
    free_before_bytes = models.BigIntegerField(
        null=True, help_text="Least free memory on its devices when its unload began."
    )
    stage = models.CharField(max_length=30, blank=True)
    percent = models.FloatField(default=0.0)
    progress_at = models.DateTimeField(null=True)
    requested_at = models.DateTimeField()
    ready_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)
    load_seconds = models.FloatField(null=True)
    in_flight = models.PositiveIntegerField(default=0)
    queued = models.PositiveIntegerField(default=0)
    servable = models.BooleanField(default=True)
    unservable_reason = models.CharField(max_length=200, blank=True)
    observed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("-requested_at",)
        indexes = [models.Index(fields=("phase", "ended_at"))]
        constraints = [
            models.UniqueConstraint(
                fields=("profile", "neuron"),
                condition=Q(phase__in=sorted(LIVE)),
                name="one_live_placement_per_model_and_neuron",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.profile} on {self.neuron} ({self.phase})"


class Demand(models.Model):
    """That a model is waited for: one row per model and source (a gateway, or the operator).

    A gateway renews its rows while requests wait; the rows of one that died expire by themselves.
    """

    profile = models.ForeignKey(ModelProfile, on_delete=models.CASCADE, related_name="demands")
    source = models.CharField(max_length=100)
    on_neuron = models.ForeignKey(Neuron, on_delete=models.CASCADE, null=True, blank=True)
    num_waiting = models.PositiveIntegerField(default=1)
    since = models.DateTimeField()
    expires_at = models.DateTimeField()
    verdict = models.JSONField(
        null=True, help_text="The planner's last word: {kind: hold|refuse, refusals: [...]}."
    )

    class Meta:
        ordering = ("since",)
        constraints = [
            models.UniqueConstraint(fields=("profile", "source"), name="one_demand_per_source"),
        ]

    def __str__(self) -> str:
        return f"{self.num_waiting} waiting for {self.profile} at {self.source}"


class Cooldown(models.Model):
    """Failed loads of a model on a neuron: not tried there again before `until`."""

    profile = models.ForeignKey(ModelProfile, on_delete=models.CASCADE, related_name="cooldowns")
    neuron = models.ForeignKey(Neuron, on_delete=models.CASCADE, related_name="cooldowns")
    num_failures = models.PositiveIntegerField(default=0)
    until = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("profile", "neuron"), name="one_cooldown_per_pair"),
        ]

    def __str__(self) -> str:
        return f"{self.profile} on {self.neuron} until {self.until}"


class EventKind(models.TextChoices):
    PHASE = "phase", "phase changed"
    DECISION = "decision", "decided"
    NEURON = "neuron", "neuron changed"
    OPERATOR = "operator", "operator"


class FleetEvent(models.Model):
    """Every change of phase and every decision, with its reason as data. Outlives what it names."""

    at = models.DateTimeField(db_index=True)
    kind = models.CharField(max_length=20, choices=EventKind.choices)
    model = models.CharField(max_length=200, blank=True, db_index=True)
    neuron = models.CharField(max_length=100, blank=True)
    placement = models.BigIntegerField(null=True)
    message = models.CharField(max_length=500)
    data = models.JSONField(default=dict)
    actor = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering = ("-at", "-id")

    def __str__(self) -> str:
        return self.message


class Lease(models.Model):
    """Who may do what only one may do at a time. Taken and given back by compare-and-set."""

    name = models.CharField(max_length=100, primary_key=True)
    holder = models.CharField(max_length=100, blank=True)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name}: {self.holder}"
