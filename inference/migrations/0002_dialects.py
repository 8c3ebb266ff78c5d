"""`dialect` names the operation: what was `openai` is `chat` now."""

from typing import Any

from django.db import migrations, models


def rename(apps: Any, old: str, new: str) -> None:
    apps.get_model("inference", "RequestRecord").objects.filter(dialect=old).update(dialect=new)


def forwards(apps: Any, schema_editor: Any) -> None:
    rename(apps, "openai", "chat")


def backwards(apps: Any, schema_editor: Any) -> None:
    rename(apps, "chat", "openai")


class Migration(migrations.Migration):
    dependencies = [
        ("inference", "0001_initial"),
    ]

    operations = [
        migrations.AlterField(
            model_name="requestrecord",
            name="dialect",
            field=models.CharField(
                choices=[
                    ("chat", "OpenAI chat"),
                    ("completions", "OpenAI completions"),
                    ("embeddings", "OpenAI embeddings"),
                    ("responses", "OpenAI responses"),
                    ("messages", "Anthropic messages"),
                ],
                max_length=20,
            ),
        ),
        migrations.RunPython(forwards, backwards),
    ]
