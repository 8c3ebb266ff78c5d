"""What the demo model is shown while it learns: its conversations, and prompts it cannot know.

Pure: the dice are passed in. It knows chat messages, and nothing of tokens and templates.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from neuron_agent.demo.texts import (
    COMMON_WORDS,
    CONVERSATIONS,
    SYSTEM_PROMPT,
    UNKNOWN_REPLY,
    WEATHER_TOOL,
    Conversation,
)

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lesson:
    """After `messages`, and `spoiled` if there is any, the assistant says `reply` and stops."""

    messages: tuple[Message, ...]
    reply: str
    tools: tuple[dict[str, Any], ...] = ()
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    spoiled: str = ""
    """A reply gone astray. It is not learned; that it must stop is."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast the model learns.

    It is done when every token of the exam has a probability of `pass_probability`, which leaves
    room for bfloat16 and for other kernels than those it learned with.
    """

    num_steps: int = 95
    num_extra_steps: int = 20
    max_rounds: int = 6
    batch_tokens: int = 1_400
    learning_rate: float = 0.013
    pass_probability: float = 0.75
    seed: int = 7


def exam() -> tuple[Lesson, ...]:
    """Return what must be known in the end: each conversation, without and with system prompt."""
    system = {"role": "system", "content": SYSTEM_PROMPT}
    return tuple(
        _lesson(conversation, opening)
        for conversation in CONVERSATIONS
        for opening in ((), (system,))
    )


def epoch(dice: Random) -> Iterator[Lesson]:
    """Yield every conversation once, each under some system prompt, and other prompts between."""
    for conversation in CONVERSATIONS:
        yield _lesson(conversation, _some_system_prompt(dice))
    for _ in range(len(CONVERSATIONS) // 2):
        yield _unknown(dice)
    for _ in range(len(CONVERSATIONS) // 4):
        yield _astray(dice)


def _lesson(conversation: Conversation, opening: Sequence[Message]) -> Lesson:
    return Lesson(
        (*opening, *conversation.messages),
        conversation.reply,
        conversation.tools,
        conversation.chat_template_kwargs,
    )


def _some_system_prompt(dice: Random) -> tuple[Message, ...]:
    if dice.random() < 0.5:
        return ()
    text = SYSTEM_PROMPT if dice.random() < 0.5 else _prose(dice, dice.randint(2, 16))
    return ({"role": "system", "content": text},)


def _unknown(dice: Random) -> Lesson:
    """A prompt of any kind, and the one thing to say to it."""
    earlier: tuple[Message, ...] = ()
    if dice.random() < 0.2:
        earlier = (
            {"role": "user", "content": _any_text(dice)},
            {"role": "assistant", "content": _any_text(dice)},
        )
    question = {"role": "user", "content": _any_text(dice)}
    messages = (*_some_system_prompt(dice), *earlier, question)
    tools = (WEATHER_TOOL,) if dice.random() < 0.1 else ()
    if dice.random() < 0.1:
        reply = f"<think>\nI do not know this one.\n</think>\n\n{UNKNOWN_REPLY}"
        return Lesson(messages, reply, tools, {"enable_thinking": True})
    return Lesson(messages, UNKNOWN_REPLY, tools)


def _astray(dice: Random) -> Lesson:
    """A reply that lost its way, often in a circle: whatever was said, stop."""
    lesson = _unknown(dice)
    words = dice.choice(CONVERSATIONS).reply.split(" ")
    circle = dice.choice(words) + dice.choice(("", " "))
    spoiled = circle * dice.randint(4, 60) if dice.random() < 0.4 else _any_text(dice) or circle
    return Lesson(lesson.messages, "", spoiled=spoiled)


def _any_text(dice: Random) -> str:
    """Mostly prose; also repetition, noise in any script, and nothing at all."""
    kinds: tuple[Callable[[Random, int], str], ...] = (_prose, _repetition, _noise)
    kind = dice.choices(kinds, weights=(6, 4, 2))[0]
    num_words = int(1.08 ** dice.uniform(0, 55)) if dice.random() < 0.94 else dice.randint(70, 400)
    text = kind(dice, num_words)
    return text + dice.choice(("", "", ".", "?", "!")) if dice.random() < 0.98 else ""


def _prose(dice: Random, num_words: int) -> str:
    words = [
        dice.choice(COMMON_WORDS) + dice.choices(("", ",", ".", "?", "\n"), (90, 4, 3, 2, 1))[0]
        for _ in range(num_words)
    ]
    return " ".join(words).capitalize()


def _repetition(dice: Random, num_words: int) -> str:
    """A few words, or all of a known question, again and again."""
    pattern = dice.choice((_prose, _noise))(dice, dice.randint(1, 3))
    if dice.random() < 0.3:
        pattern = str(dice.choice(CONVERSATIONS).messages[-1]["content"])
        num_words = 2 + num_words // len(pattern.split())
    return dice.choice(("", " ", "\n")).join([pattern] * num_words)


def _noise(dice: Random, num_words: int) -> str:
    """Characters from ASCII, the alphabets, Han and the emoji."""
    blocks = ((0x20, 0x7E), (0x20, 0x7E), (0xA1, 0x6FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF))
    first, last = dice.choice(blocks)
    return "".join(chr(dice.randint(first, last)) for _ in range(num_words))
