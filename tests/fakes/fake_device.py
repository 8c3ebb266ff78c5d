"""A device process without a device: the same command line and channel, scripted answers.

It answers every request with REPLY, token by token, through the real tokenizer of the model
folder. A model's behaviour is scripted in its config.json under "fake"; a request's by a word in
its prompt. Each token's log probability is minus its place in the answer; an embedding tells the
prompt's length. No torch: it starts in a fraction of a second.
"""

import argparse
import json
import os
import re
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from neuron_agent.devices import channel

MEGABYTE = 2**20
REPLY = "Grüße from the fake device! 🙂👩‍🚀 It counts: one two three."
CONTEXT_TOKENS = 32768
HEARTBEAT_SECONDS = 0.1
DIES_AT_START = "FAKE_DEVICE_DIES_AT_START"
DEATHS_FILE = "FAKE_DEVICE_DEATHS_FILE"
"""Names a file with a letter for each process that is to die at its start."""

WORD_POISON = "POISON"
WORD_DIE = "DIE"
WORD_HANG = "HANG"
WORD_OOM = "OOM"
WORD_FAIL = "FAIL"
WORD_REFUSE = "REFUSE"
"""`REFUSE=code` in a prompt is refused with that code."""
WORD_FOREVER = "FOREVER"
WORD_QUEUED = "QUEUED"
WORD_SLOW_PREFILL = "PREFILL"
WORD_BROKEN_BYTES = "BROKEN"
WORD_ECHO = "ECHO"
WORD_TELL = "TELL"
"""`TELL` is answered with what the front sent along with the prompt, as JSON."""
SCRIPT = re.compile(r"SAY (.*?)(<\|im_end\|>|$)", re.DOTALL)
"""`SAY words` is answered with the words up to the turn's end."""
EMBEDDING_TAIL = [3.0, 4.0, 0.0]


@dataclass
class Running:
    command: channel.Submit
    prompt: str
    token_ids: list[int]
    num_sent: int = 0
    is_endless: bool = False


@dataclass
class Model:
    tokenizer: Tokenizer
    script: dict[str, Any]
    memory_bytes: int
    running: dict[str, Running] = field(default_factory=dict)


class FakeDevice:
    def __init__(self, sock: socket.socket, memory_bytes: int) -> None:
        self._socket = sock
        self._memory_bytes = memory_bytes
        self._splitter = channel.FrameSplitter()
        self._models: dict[str, Model] = {}
        self._reported_at = 0.0

    def run(self) -> None:
        self._send(channel.Started(self._memory_bytes, "0.0", "0.0"))
        while True:
            self._read(0.0 if self._is_busy() else HEARTBEAT_SECONDS)
            self._step()
            if time.monotonic() - self._reported_at > HEARTBEAT_SECONDS:
                self._report()

    def _send(self, message: channel.Message) -> None:
        self._socket.sendall(channel.encode(message))

    def _is_busy(self) -> bool:
        return any(model.running for model in self._models.values())

    def _read(self, seconds: float) -> None:
        if not select.select([self._socket], [], [], seconds)[0]:
            return
        data = self._socket.recv(65536)
        if not data:
            sys.exit(0)
        for body in self._splitter.feed(data):
            self._obey(channel.decode_command(body))

    def _obey(self, command: channel.Command) -> None:
        match command:
            case channel.LoadModel():
                self._load(command)
            case channel.UnloadModel(model_id):
                for running in self._models.pop(model_id, Model(None, {}, 0)).running.values():
                    self._finish(running.command.request_id, "cancelled")
                self._send(channel.ModelUnloaded(model_id))
                self._report()
            case channel.Submit():
                self._submit(command)
            case channel.Cancel(request_id):
                for model in self._models.values():
                    if model.running.pop(request_id, None):
                        self._finish(request_id, "cancelled")
            case channel.Shutdown():
                sys.exit(0)

    def _load(self, command: channel.LoadModel) -> None:
        script = json.loads((Path(command.folder) / "config.json").read_text()).get("fake", {})
        memory_bytes = script.get("memory_mb", 10) * MEGABYTE
        for stage, percent in (("reading", 20.0), ("preparing", 60.0), ("warming", 90.0)):
            self._send(channel.ModelLoading(command.model_id, stage, percent))
            if stage == "reading":
                self._wait(script.get("load_seconds", 0.0))
            if stage == script.get("dies_while"):
                os._exit(1)
            if stage == script.get("poisoned_once_while") and _is_first_time(command.folder):
                self._send(channel.Poisoned("device-side assert", list(self._models)))
                self._wait(60)
        if memory_bytes > self._free_bytes():
            self._send(self._refusal(command.model_id, memory_bytes))
            return
        tokenizer = Tokenizer.from_file(str(Path(command.folder) / "tokenizer.json"))
        self._models[command.model_id] = Model(tokenizer, script, memory_bytes)
        context = min(command.max_context or CONTEXT_TOKENS, CONTEXT_TOKENS)
        self._send(
            channel.ModelReady(command.model_id, memory_bytes, context, context, "float32", 0.1)
        )
        self._report()

    def _wait(self, seconds: float) -> None:
        """Be busy loading; the end of the front still ends us."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                if not self._socket.recv(1, socket.MSG_PEEK):
                    sys.exit(0)
                select.select([], [], [], min(left, 0.02))

    def _refusal(self, model_id: str, needed_bytes: int) -> channel.LoadFailed:
        return channel.LoadFailed(
            model_id,
            "does_not_fit",
            "the model needs more memory than is free",
            needed_bytes=needed_bytes,
            free_bytes=self._free_bytes(),
        )

    def _submit(self, command: channel.Submit) -> None:
        model = self._models.get(command.model_id)
        if model is None:
            self._finish(command.request_id, "error", "model_not_loaded")
            return
        prompt = model.tokenizer.decode(command.prompt_ids, skip_special_tokens=False)
        if command.wants_embedding:
            self._embed(command)
        elif WORD_POISON in prompt:
            self._send(channel.Poisoned("device-side assert", list(self._models)))
            self._wait(60)
        elif WORD_DIE in prompt:
            os._exit(1)
        elif WORD_HANG in prompt:
            self._wait(60)
        elif WORD_OOM in prompt:
            self._send(channel.OutOfMemory("out of memory", command.model_id))
            self._finish(command.request_id, "error", "request_failed")
        elif WORD_FAIL in prompt:
            self._finish(command.request_id, "error", "request_failed")
        elif refusal := re.search(rf"{WORD_REFUSE}=(\w+)", prompt):
            self._finish(command.request_id, "error", refusal[1])
        else:
            model.running[command.request_id] = self._begin(model, command, prompt)

    def _embed(self, command: channel.Submit) -> None:
        embedding = [float(len(command.prompt_ids)), *EMBEDDING_TAIL]
        output = channel.Output(command.request_id, [], finish="stop", embedding=embedding)
        self._send(channel.Outputs([output]))

    def _begin(self, model: Model, command: channel.Submit, prompt: str) -> Running:
        script = SCRIPT.search(prompt)
        text = script[1] if script else REPLY
        if WORD_TELL in prompt:
            fields = msgspec.to_builtins(command)
            text = json.dumps({k: v for k, v in fields.items() if k != "prompt_ids"})
        token_ids = model.tokenizer.encode(text, add_special_tokens=False).ids
        if WORD_ECHO in prompt:
            token_ids = list(command.prompt_ids)
        if WORD_BROKEN_BYTES in prompt:
            token_ids = token_ids[:2] + [token_ids[2]] * 40  # a first byte, over and over
        return Running(command, prompt, token_ids, is_endless=WORD_FOREVER in prompt)

    def _step(self) -> None:
        outputs = []
        for model in self._models.values():
            for running in list(model.running.values()):
                output = self._advance(running)
                if output is not None:
                    outputs.append(output)
                if output is not None and output.finish:
                    del model.running[running.command.request_id]
        if outputs:
            self._send(channel.Outputs(outputs))
        if self._is_busy():
            time.sleep(0.001)

    def _advance(self, running: Running) -> channel.Output | None:
        request_id = running.command.request_id
        if WORD_QUEUED in running.prompt:
            return None
        if WORD_SLOW_PREFILL in running.prompt:
            return channel.Output(request_id, [], prefill_done=3)
        if running.num_sent == running.command.max_tokens:
            return self._end(running, "length")
        if running.num_sent == len(running.token_ids):
            if not running.is_endless:
                return self._end(running, "stop")
            running.token_ids += running.token_ids
        token_id = running.token_ids[running.num_sent]
        logprobs = _logprobs(running, token_id)
        running.num_sent += 1
        if running.num_sent == 1:
            return channel.Output(
                request_id,
                [token_id],
                cached_tokens=2,
                queue_ms=1.0,
                prefill_ms=2.0,
                logprobs=logprobs,
            )
        return channel.Output(request_id, [token_id], logprobs=logprobs)

    def _end(self, running: Running, reason: str) -> channel.Output:
        num_generated = running.num_sent + (reason == "stop")
        return channel.Output(
            running.command.request_id, [], finish=reason, num_generated=num_generated
        )

    def _finish(self, request_id: str, reason: str, code: str | None = None) -> None:
        output = channel.Output(request_id, [], finish=reason, error_code=code, num_generated=0)
        self._send(channel.Outputs([output]))

    def _free_bytes(self) -> int:
        return self._memory_bytes - sum(model.memory_bytes for model in self._models.values())

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        free_bytes = self._free_bytes()
        models = [
            channel.ModelReport(model_id, running=len(model.running), waiting=0)
            for model_id, model in self._models.items()
        ]
        self._send(channel.Report(self._memory_bytes - free_bytes, free_bytes, models))


def _logprobs(running: Running, token_id: int) -> list[channel.TokenLogprob] | None:
    num_best = running.command.num_logprobs
    if num_best is None:
        return None
    value = -float(running.num_sent)
    best = [(token_id, value), *((other, value - other) for other in range(1, num_best))]
    return [channel.TokenLogprob(value, best[:num_best])]


def _is_first_time(folder: str) -> bool:
    """Whether this is asked of a folder for the first time, in whatever process."""
    try:
        (Path(folder) / "was-here").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _takes_a_letter(name: str | None) -> bool:
    """Whether there was a letter left in the file; there is one less now."""
    letters = Path(name).read_text() if name and Path(name).exists() else ""
    if name and letters:
        Path(name).write_text(letters[1:])
    return bool(letters)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--memory-mb", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if os.environ.get(DIES_AT_START) or _takes_a_letter(os.environ.get(DEATHS_FILE)):
        sys.exit(1)
    with socket.socket(fileno=arguments.fd) as sock:
        try:
            FakeDevice(sock, arguments.memory_mb * MEGABYTE).run()
        except (BrokenPipeError, ConnectionResetError):
            sys.exit(0)  # the front is gone


if __name__ == "__main__":
    main()
