"""Claude Code, Codex and opencode: the settings each is given, and what it makes of an answer.

The settings are those of docs/clients.md, and what keeps the client from asking anyone but Cortex.
Knows how clients are called, not what is expected of them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.clients.programs import Call, as_command
from tests.fakes.scripted_reply import ScriptedCall

SYSTEM_PROMPT = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Errand:
    """A question for a client. A small model gets a small prompt, with as few tools as can be."""

    url: str
    model: str
    prompt: str
    folder: Path
    home: Path
    is_small: bool = False


class CommandLine(Protocol):
    name: str
    asks_again: bool
    """After an answer that broke off."""

    def call(self, errand: Errand) -> Call: ...

    def reading(self, file: Path) -> ScriptedCall:
        """Return what a model says to have the client read a file."""

    def said(self, output: str) -> str:
        """Return the text that the client shows for the model's answer."""


class ClaudeCode:
    name = "claude"
    asks_again = True

    def call(self, errand: Errand) -> Call:
        options = ["--tools", "Read", "--allowedTools", "Read"]
        if errand.is_small:
            options = ["--tools", "", "--system-prompt", SYSTEM_PROMPT]
        arguments = ["-p", errand.prompt, "--output-format", "json", *options]
        environment = {
            "ANTHROPIC_BASE_URL": errand.url,
            "ANTHROPIC_AUTH_TOKEN": "none",
            "ANTHROPIC_MODEL": errand.model,
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": errand.model,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        return Call(as_command(self.name, arguments), errand.folder, errand.home, environment)

    def reading(self, file: Path) -> ScriptedCall:
        return ScriptedCall("Read", {"file_path": str(file)})

    def said(self, output: str) -> str:
        result = json.loads(output)
        assert not result["is_error"], result
        return str(result["result"])


class Codex:
    name = "codex"
    asks_again = True

    def call(self, errand: Errand) -> Call:
        settings = errand.home / ".codex"
        settings.mkdir(exist_ok=True)
        (settings / "config.toml").write_text(self._config(errand))
        # The test's own command needs no sandbox, which not every machine can give.
        arguments = ["exec", "--json", "--skip-git-repo-check", "--sandbox", "danger-full-access"]
        environment = {"CORTEX_API_KEY": "none"}
        command = as_command(self.name, [*arguments, errand.prompt])
        return Call(command, errand.folder, errand.home, environment)

    def _config(self, errand: Errand) -> str:
        lines = [f'model = "{errand.model}"', 'model_provider = "cortex"']
        lines.append("check_for_update_on_startup = false")
        if errand.is_small:
            prompt = errand.home / "prompt.md"
            prompt.write_text(SYSTEM_PROMPT)
            lines.append(f'model_instructions_file = "{prompt}"')
            parts = ("permissions_instructions", "environment_context", "apps_instructions")
            lines += [f"include_{part} = false" for part in parts]
            lines += ["[skills]", "include_instructions = false"]
        lines += ["[model_providers.cortex]", 'name = "Cortex"', 'wire_api = "responses"']
        lines += [f'base_url = "{errand.url}/v1"', 'env_key = "CORTEX_API_KEY"']
        lines += ["[features]", "plugins = false", "[analytics]", "enabled = false"]
        return "\n".join(lines)

    def reading(self, file: Path) -> ScriptedCall:
        return ScriptedCall("exec_command", {"cmd": f"cat {file}"})

    def said(self, output: str) -> str:
        events = list(_json_lines(output))
        assert events[-1]["type"] == "turn.completed", events
        items = [event["item"] for event in events if event["type"] == "item.completed"]
        return "".join(item["text"] for item in items if item["type"] == "agent_message")


class Opencode:
    name = "opencode"
    asks_again = False

    def call(self, errand: Errand) -> Call:
        (errand.folder / "opencode.json").write_text(json.dumps(self._config(errand)))
        arguments = ["run", errand.prompt, "--format", "json"]
        if errand.is_small:
            arguments += ["--agent", "plain"]
        off = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "SHARE")
        environment = {f"OPENCODE_DISABLE_{name}": "1" for name in off}
        return Call(as_command(self.name, arguments), errand.folder, errand.home, environment)

    def _config(self, errand: Errand) -> dict[str, Any]:
        plain = {"mode": "primary", "prompt": SYSTEM_PROMPT, "tools": {"*": False}}
        limit = {"context": 32_768, "output": 4_096}
        model = {"name": "Cortex", "tool_call": True, "reasoning": True, "limit": limit}
        return {
            "model": f"cortex/{errand.model}",
            "autoupdate": False,
            "share": "disabled",
            "enabled_providers": ["cortex"],
            "agent": {"plain": plain, "title": {"disable": errand.is_small}},
            "provider": {
                "cortex": {
                    "npm": "@ai-sdk/openai-compatible",
                    "name": "Cortex",
                    "options": {"baseURL": f"{errand.url}/v1", "apiKey": "none"},
                    "models": {errand.model: model},
                }
            },
        }

    def reading(self, file: Path) -> ScriptedCall:
        return ScriptedCall("read", {"filePath": str(file)})

    def said(self, output: str) -> str:
        events = list(_json_lines(output))
        assert all(event["type"] != "error" for event in events), events
        return "".join(event["part"]["text"] for event in events if event["type"] == "text")


COMMAND_LINES: tuple[CommandLine, ...] = (ClaudeCode(), Codex(), Opencode())


def _json_lines(output: str) -> Iterator[dict[str, Any]]:
    for line in output.splitlines():
        yield json.loads(line)
