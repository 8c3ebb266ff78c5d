"""What it means for a caller that the device ended a request otherwise than well."""

from neuron_agent.devices.channel import Output
from neuron_agent.errors import BadRequest, Conflict, NeuronError, RequestFailed, Unavailable
from neuron_agent.protocol import ErrorCode


def failure_of(output: Output, *, is_cancelled_by_caller: bool) -> NeuronError:
    """Return the error of a finish that is neither stop nor length."""
    match output.finish:
        case "cancelled" if is_cancelled_by_caller:
            return Conflict("the request was cancelled", code="request_cancelled")
        case "cancelled":
            return Unavailable("the model was unloaded", code=ErrorCode.MODEL_NOT_LOADED)
        case "device_fault":
            code = output.error_code or ErrorCode.DEVICE_FAULT
            return Unavailable(output.error or "the device failed", code=code)
        case _:
            return _refusal(output)


def _refusal(output: Output) -> NeuronError:
    """Return what it means that the device did not take or finish a request."""
    match output.error_code:
        case ErrorCode.INVALID_REQUEST | ErrorCode.CONTEXT_LENGTH_EXCEEDED as code:
            return BadRequest(output.error or "the request cannot be served", code=code)
        case ErrorCode.MODEL_NOT_LOADED as code:
            return Unavailable("the model was unloaded", code=code)
        case code:
            message = "the request failed on the device"
            return RequestFailed(message, code=code or ErrorCode.REQUEST_FAILED)
