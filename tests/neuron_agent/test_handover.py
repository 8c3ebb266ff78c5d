"""What a restart takes along, read by the next life."""

import socket

import msgspec
import pytest

from neuron_agent.config import NeuronConfig
from neuron_agent.handover import VARIABLE, Handover, inherited_listener, take_handover
from neuron_agent.protocol import LoadRequest


def test_handover_is_taken_out_of_the_environment() -> None:
    left = Handover(7, (LoadRequest("m", quant="int8"),))
    environment = {"PATH": "/bin", VARIABLE: msgspec.json.encode(left).decode()}
    assert take_handover(environment) == left
    assert environment == {"PATH": "/bin"}
    assert take_handover(environment) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"listener_fd": "x"}'])
def test_nonsense_is_no_handover(text: str) -> None:
    assert take_handover({VARIABLE: text}) is None


def test_socket_is_inherited_only_where_the_configuration_still_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for config, is_taken in [
            (NeuronConfig(port=0), True),
            (NeuronConfig(port=port), True),
            (NeuronConfig(port=port + 1), False),
            (NeuronConfig(host="::1", port=port), False),
        ]:
            handover = Handover(listener.dup().detach(), ())
            found = inherited_listener(handover, config)
            assert (found is not None) is is_taken
            if found is not None:
                found.close()


def test_descriptor_that_is_no_socket_is_not_inherited() -> None:
    assert inherited_listener(Handover(10**6, ()), NeuronConfig()) is None
