"""What is kept of each request: one row, written after the fact. No prompt and no answer text."""

from django.db import models


class Dialect(models.TextChoices):
    """The operations' names, as `wire` has them."""

    CHAT = "chat", "OpenAI chat"
    COMPLETIONS = "completions", "OpenAI completions"
    EMBEDDINGS = "embeddings", "OpenAI embeddings"
    RESPONSES = "responses", "OpenAI responses"
    MESSAGES = "messages", "Anthropic messages"


class RequestRecord(models.Model):
    """One request to the inference API, however it ended. Outlives the model and the neuron."""

    request_id = models.CharField(max_length=128, db_index=True)
    at = models.DateTimeField(db_index=True, help_text="When it arrived.")
    model = models.CharField(
        max_length=200, blank=True, db_index=True, help_text="Empty if there is no such model."
    )
    requested_model = models.CharField(
        max_length=200, blank=True, help_text="As the client named it: perhaps an alias."
    )
    neuron = models.CharField(max_length=100, blank=True)
    placement = models.BigIntegerField(null=True)
    dialect = models.CharField(max_length=20, choices=Dialect.choices)
    streaming = models.BooleanField(default=False)
    status = models.PositiveSmallIntegerField(
        help_text="As HTTP has it; 499 if the client left. A stream that broke after its 200 has "
        "the status of what broke it."
    )
    finish_reason = models.CharField(max_length=30, blank=True)
    error_code = models.CharField(max_length=50, blank=True)
    prompt_tokens = models.PositiveIntegerField(null=True)
    completion_tokens = models.PositiveIntegerField(null=True)
    cached_tokens = models.PositiveIntegerField(null=True)
    ttft_seconds = models.FloatField(
        "TTFT", null=True, help_text="To the first token sent, queueing and load included."
    )
    latency_seconds = models.FloatField(help_text="To the last byte.")
    tokens_per_second = models.FloatField(
        null=True, help_text="Of a stream: after its first token. Else: of the whole answer."
    )
    load_wait_seconds = models.FloatField(null=True, help_text="Waited for its model to load.")
    cold_start = models.BooleanField(default=False)
    queue_ms = models.FloatField(null=True)
    prefill_ms = models.FloatField(null=True)
    decode_ms = models.FloatField(null=True)
    client_address = models.CharField(max_length=64, blank=True)
    user_agent = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ("-at", "-id")
        indexes = [models.Index(fields=("model", "at"))]

    def __str__(self) -> str:
        return f"{self.request_id} {self.requested_model} {self.status}"
