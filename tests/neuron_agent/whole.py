"""For tests of the whole neuron: a small random model that can be talked to, and ways to ask it.

It says nothing sensible, but with temperature 0 always the same, if it is loaded in float32: in
bfloat16 a random model's best tokens are so near to each other that a shared beginning of a
prompt, which is computed in other pieces, may change the choice.
"""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.neuron_agent.front import Front, data_frames
from tests.neuron_agent.tiny_model import TEMPLATE, build_tokenizer, write_model

CONTEXT_TOKENS = 2048
MODEL = "org/tiny"


def write_talking_model(folder: Path, *, template: str = TEMPLATE) -> Path:
    """Write a random model of 2 layers that has a tokenizer and a chat template."""
    write_model(folder, template=template)
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=CONTEXT_TOKENS,
        # Wide enough that the best token leads by more than rounding.
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )
    torch.manual_seed(7)
    Qwen3ForCausalLM(config).eval().save_pretrained(folder)
    return folder


def body_of(number: int, num_tokens: int, model: str = MODEL) -> dict[str, Any]:
    """Return a greedy request of so many tokens; another number is another prompt."""
    return {
        "model": model,
        "prompt": [3 + (7 * place + 31 * number) % 200 for place in range(20 + number % 50)],
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def stream_text(front: Front, body: dict[str, Any]) -> str:
    """Return the text of a stream that came to its end, and came as tokens."""
    answer = front.ask("POST", "/v1/completions", {**body, "stream": True})
    assert answer.status == 200, answer.body
    frames = answer.body.removesuffix(b"\n\n").split(b"\n\n")
    assert frames[-1] == b"data: [DONE]", frames[-1]
    choices = [chunk["choices"][0] for chunk in data_frames(frames) if chunk["choices"]]
    assert choices[-1]["finish_reason"] == "length", choices[-1]
    return "".join(choice["text"] for choice in choices)


def expected_texts(front: Front, bodies: list[dict[str, Any]]) -> list[str]:
    """Return what each gives alone; asked once for each neuron, as it is always the same."""
    known = _EXPECTED.setdefault(front.process.pid, {})
    keys = [json.dumps(body) for body in bodies]
    for key, body in zip(keys, bodies, strict=True):
        if key not in known:
            known[key] = stream_text(front, body)
    return [known[key] for key in keys]


_EXPECTED: dict[int, dict[str, str]] = {}


class Bystanders:
    """Streams that run while something else happens: `with Bystanders(...)`, then `check()`.

    `check` fails unless each gave, to its end, the very text that it gives undisturbed.
    """

    def __init__(self, front: Front, num_streams: int, num_tokens: int, model: str = MODEL) -> None:
        self._front = front
        self._model = model
        self._bodies = [body_of(number, num_tokens, model) for number in range(num_streams)]
        self._expected = expected_texts(front, self._bodies)
        self._pool = ThreadPoolExecutor(num_streams)
        self._running: list[Future[str]] = []

    def __enter__(self) -> "Bystanders":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def start(self) -> None:
        """Begin the same streams anew, beside those that still run."""
        self._running += [
            self._pool.submit(stream_text, self._front, body) for body in self._bodies
        ]

    @property
    def are_running(self) -> bool:
        """Whether all of the last round still run: then they met what happened meanwhile."""
        last = self._running[-len(self._bodies) :]
        return not any(stream.done() for stream in last)

    def keep_running(self) -> None:
        """Begin anew once those that run have come to their end, if any has."""
        if not self.are_running:
            self.check()
            self.start()

    def check(self) -> None:
        texts = [stream.result() for stream in self._running]
        rounds = len(texts) // len(self._expected)
        assert texts == self._expected * rounds


def metric(front: Front, name: str, model: str = MODEL) -> float:
    """Return a model's gauge, as scraped."""
    prefix = f"{name}{{model={json.dumps(model)}}} "
    lines = front.ask("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))


def is_idle(front: Front, model: str = MODEL) -> bool:
    """Whether neither the front nor the device has any request of a model, nor memory for one."""
    (health,) = (each for each in front.get("/health")["models"] if each["id"] == model)
    at_the_front = health["in_flight"] + health["queue_depth"] + health["kv_used_ratio"]
    names = ("requests_running", "requests_waiting", "kv_cache_usage_ratio")
    return at_the_front == 0 and all(metric(front, f"neuron_{name}", model) == 0 for name in names)
