import socket

import pytest
from django.core.management.base import CommandError

from cortex_site import embedded


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("variable", ["CORTEX_PORT", "CORTEX_METRICS_PORT", "NEURON_PORT"])
def test_a_port_in_use_is_named_with_the_variable_that_changes_it(settings, taken_port, variable):
    for name, port in (("CORTEX_PORT", 0), ("CORTEX_METRICS_PORT", 0), ("NEURON_PORT", 0)):
        setattr(settings, name, port)
    setattr(settings, variable, taken_port)
    with pytest.raises(CommandError, match=f"{taken_port}.*{variable}"):
        embedded.check_ports()


def test_one_data_folder_serves_one_up_at_a_time(settings, tmp_path):
    settings.DATA_DIR = tmp_path
    with embedded.lock_data_folder(), pytest.raises(CommandError, match="CORTEX_DATA"):
        embedded.lock_data_folder()
    embedded.lock_data_folder().close()


def test_a_named_redis_needs_no_valkey(settings):
    settings.REDIS_URL_GIVEN = "redis://somewhere"
    assert embedded.valkey_program() is None


@pytest.mark.django_db
def test_the_first_operator_gets_a_password_once():
    assert len(embedded.ensure_admin() or "") >= 12
    assert embedded.ensure_admin() is None
