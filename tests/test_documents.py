"""What can be checked of the documents is checked: settings, commands and files they must name."""

import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from neuron_agent.config import NeuronConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGES = ("cortex_site", "fleet", "inference", "neuron_agent")
UNNAMED = {"__init__.py", "apps.py"}


def settings_variables() -> set[str]:
    text = (ROOT / "cortex_site" / "settings.py").read_text()
    return set(re.findall(r'env_\w+\(\s*"([A-Z_]+)"', text))


def neuron_variables(config: type = NeuronConfig, prefix: str = "NEURON_") -> set[str]:
    names: set[str] = set()
    for field in msgspec.structs.fields(config):
        name = prefix + field.name.upper()
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            names |= neuron_variables(field.type, name + "__")
        else:
            names.add(name)
    return names


@pytest.mark.parametrize("name", sorted(settings_variables() | neuron_variables()))
def test_every_setting_is_in_the_readme(name):
    assert f"`{name}`" in README


def test_the_readme_names_no_setting_that_does_not_exist():
    named = set(re.findall(r"`((?:CORTEX|NEURON)_[A-Z_]+)`", README))
    assert named <= settings_variables() | neuron_variables()


@pytest.mark.parametrize(
    "name",
    sorted(
        path.stem
        for package in PACKAGES
        for path in (ROOT / package / "management" / "commands").glob("[a-z]*.py")
    ),
)
def test_every_command_is_in_the_readme(name):
    assert f"`manage.py {name}" in README or f"/ `{name} " in README


def test_every_file_is_in_the_tree():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *PACKAGES],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    paths = [Path(name) for name in listed if (ROOT / name).exists()]
    files = {path.name for path in paths if path.suffix == ".py"} - UNNAMED
    ours = {name for name in files if not re.match(r"\d{4}_", name)}
    missing = sorted(
        name for name in ours if not re.search(rf"\b{re.escape(name[:-3])}\b", ARCHITECTURE)
    )
    assert missing == []


def test_the_architecture_is_short_enough_to_be_read():
    assert len(ARCHITECTURE.splitlines()) <= 150
