"""The neuron's configuration: what it takes, and what it says when it does not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.config import (
    ConfigError,
    NeuronConfig,
    RegistryConfig,
    check_bind,
    is_loopback,
    load_config,
)
from neuron_agent.protocol import LoadRequest


def write(folder: Path, text: str) -> Path:
    path = folder / "neuron.toml"
    path.write_text(text)
    return path


def test_nothing_said_gives_the_defaults() -> None:
    assert load_config(None, {"PATH": "/bin"}) == NeuronConfig()


def test_environment_overrides_the_file_table_by_table(tmp_path: Path) -> None:
    path = write(tmp_path, "port = 1000\n[devices]\ncpu = 1\ncpu_memory_mb = 400\n")
    config = load_config(path, {"NEURON_PORT": "2000", "NEURON_DEVICES__CPU": "3"})
    assert config.port == 2000
    assert config.devices.cpu == 3
    assert config.devices.cpu_memory_mb == 400


def test_token_of_digits_stays_text() -> None:
    assert load_config(None, {"NEURON_TOKEN": "0123"}).token == "0123"


def test_default_models_are_names_or_loads(tmp_path: Path) -> None:
    text = '[[default_models]]\nmodel_id = "demo"\nsource = "/models/demo"\n'
    wanted = load_config(write(tmp_path, text), {}).default_models
    assert wanted == (LoadRequest("demo", source="/models/demo"),)
    named = load_config(None, {"NEURON_DEFAULT_MODELS": "org/a, org/b"}).default_models
    assert named == ("org/a", "org/b")


def test_lists_may_be_json() -> None:
    config = load_config(None, {"NEURON_DEVICE_COMMAND": '["python", "-c", "a, b"]'})
    assert config.device_command == ("python", "-c", "a, b")
    with pytest.raises(ConfigError, match="NEURON_DEVICE_COMMAND"):
        load_config(None, {"NEURON_DEVICE_COMMAND": '["python"'})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host = 'localhost'\nprot = 1\n", r"neuron.toml:2: unknown key 'prot'; .* 'port'\?"),
        ("[devices]\n\ncpus = 1\n", r"neuron.toml:3: unknown key 'cpus'; .* 'cpu'\?"),
        ("\n[devices]\ncpu = -1\n", r"neuron.toml:3: cpu: .*>= 0"),
        ("port = 'many'\n", r"neuron.toml:1: port: "),
        ("port = 70000\n", r"neuron.toml:1: port: .*65535"),
        ("log_format = 'xml'\n", r"neuron.toml:1: log_format: "),
        ("port = \n", r"neuron.toml: .*line 1"),
        ("devices = 5\n", r"neuron.toml:1: devices: "),
    ],
)
def test_bad_file_says_what_is_wrong_and_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text), {})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NEURON_PROT", "1", "NEURON_PROT: unknown setting; did you mean 'port'"),
        ("NEURON_DEVICE__CPU", "1", "unknown table 'device'; did you mean 'devices'"),
        ("NEURON_DEVICES__CPU", "many", "environment: cpu: "),
        ("NEURON_DEVICES", "1", "NEURON_DEVICES: unknown setting"),
        ("NEURON_MAX_IN_FLIGHT", "0", "max_in_flight"),
    ],
)
def test_bad_variable_says_which(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, {name: value})


def test_file_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.toml", {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gpu-host"])
def test_open_port_without_a_token_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="set a token"):
        load_config(None, {"NEURON_HOST": host})
    assert load_config(None, {"NEURON_HOST": host, "NEURON_TOKEN": "secret"}).host == host


def test_empty_token_is_no_token() -> None:
    with pytest.raises(ConfigError, match="empty"):
        check_bind("0.0.0.0", "  ")


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_loopback_in_both_notations(address: object) -> None:
    assert is_loopback(f"::ffff:{address}") == is_loopback(str(address))
    assert is_loopback(str(address)) == str(address).startswith("127.")


def test_registries_have_a_table_each(tmp_path: Path) -> None:
    text = '[registries.ours]\nurl = "https://models.example"\ntoken = "secret"\n'
    registries = load_config(write(tmp_path, text), {}).registries
    assert registries == {"ours": RegistryConfig("https://models.example", token="secret")}


def test_registries_of_the_environment_are_json() -> None:
    variable = '{"ours": {"url": "https://models.example"}}'
    registries = load_config(None, {"NEURON_REGISTRIES": variable}).registries
    assert registries == {"ours": RegistryConfig("https://models.example")}
    with pytest.raises(ConfigError, match="NEURON_REGISTRIES: not JSON"):
        load_config(None, {"NEURON_REGISTRIES": "ours"})


@pytest.mark.parametrize("line", ['address = "x"', "url = 7"])
def test_registry_that_is_told_wrong_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="registries"):
        load_config(write(tmp_path, f"[registries.ours]\n{line}\n"), {})
