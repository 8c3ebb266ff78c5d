"""Grammars that a text must match: compiled off the device thread, then a mask a step.

llguidance does both. A compilation runs in a thread of its own kind, within limits of size, effort
and time, and is kept for the next request alike; a matcher follows one request's text. It knows no
logits and no schedule, and of a model only its tokens.
"""

import contextlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from neuron_agent.engine.sampling.edits import TokenMasks

MAX_GRAMMAR_BYTES = 512 * 1024
MAX_KEPT = 64
NUM_WORKERS = 2
MAX_LOST_WORKERS = 4
STACK_BYTES = 256 * 1024 * 1024
"""The library follows references by calling itself, and would run off an ordinary stack: a chain of
3,000 takes 9 MB. It is address space, taken from memory only as far as it is used."""
MESSAGE_CHARACTERS = 300

LIMITS = LLParserLimits(
    # A lexer state takes one or two kilobytes, and every running request has its own.
    max_lexer_states=25_000,
    verbose_errors=False,
)
"""The others are the library's own: some 20 ms to begin with and 15 ms for a mask, at the most."""


class GrammarRefused(Exception):
    """The grammar cannot be used: the caller's fault."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a matcher knows of a model's tokens."""

    tokenizer_json: str
    """A tokenizer as the tokenizers library writes it."""
    stop_ids: tuple[int, ...]
    """The tokens that end a text, which a grammar allows when it is satisfied."""


def read_vocabulary(path: Path) -> Vocabulary:
    """Return the vocabulary of a model folder or GGUF file. Raises errors.Unprocessable."""
    from neuron_agent.sources.model_text import read_model_text

    text = read_model_text(path)
    return Vocabulary(text.tokenizer.to_str(), text.stop_ids)


# --- one request's grammar ---------------------------------------------------------------------


class Matcher:
    """Follows one text through its grammar. Used on the device thread alone."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._matcher = matcher
        self.stop_ids = frozenset(tokenizer.eos_tokens)
        self.num_words = (tokenizer.vocab_size + 31) // 32
        """Words of 32 bits that a mask takes."""

    @property
    def error(self) -> str | None:
        """Why it cannot go on: some limit of the library, for the most part."""
        return _first_line(self._matcher.get_error()) or None

    @property
    def is_finished(self) -> bool:
        """Nothing may follow: the text is complete."""
        return self._matcher.is_stopped()

    def fill(self, words: Tensor) -> None:
        """Write which tokens may come next into `words` [num_words] int32, on the CPU.

        Without an error the interpreter is free meanwhile. After one, no token may come.
        """
        self._matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.nbytes)
        if self._matcher.is_error():
            words.zero_()

    def take(self, token_id: int) -> bool:
        """Go on behind this token; False if the grammar does not allow it."""
        return self._matcher.consume_token(token_id)


def masks_for(matchers: Sequence[tuple[int, Matcher]], vocabulary_size: int) -> TokenMasks | None:
    """Return the masks of (row, matcher) pairs; None if there are none.

    A model may have more rows in its embedding than its tokenizer has tokens, or fewer: tokens
    that the tokenizer does not know are never allowed, and those the model lacks are left out.
    """
    if not matchers:
        return None
    num_words = max((vocabulary_size + 31) // 32, *(one.num_words for _, one in matchers))
    bits = torch.zeros(len(matchers), num_words, dtype=torch.int32)
    for words, (_, matcher) in zip(bits, matchers, strict=True):
        matcher.fill(words[: matcher.num_words])
    return TokenMasks([row for row, _ in matchers], bits)


# --- compiling ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar at its beginning; each request gets a copy."""

    matcher: LLMatcher
    tokenizer: LLTokenizer

    def new_matcher(self) -> Matcher:
        return Matcher(self.matcher.deep_copy(), self.tokenizer)


@dataclass(slots=True)
class _Job:
    grammar: str
    result: "Future[Compiled]"
    is_given_up: bool = False


class GrammarCompiler:
    """Compiles in threads. Its methods are called on one thread, and none of them waits."""

    def __init__(
        self,
        source: Callable[[], Vocabulary],
        compile_one: Callable[[LLTokenizer, str], LLMatcher] | None = None,
    ) -> None:
        self._source = source
        self._compile_one = compile_one or _compile
        self._tokenizer: Future[LLTokenizer] | None = None
        self._jobs: OrderedDict[str, _Job] = OrderedDict()  # least recently used first
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._num_workers = 0
        self._lost: list[_Job] = []  # given up while a thread was at them
        self._preparing = threading.Lock()

    def prepare(self) -> None:
        """Begin to read the vocabulary; the first grammar waits for it otherwise.

        For a large vocabulary that takes most of a second, and the library keeps the interpreter
        to itself: better while the weights are being read than between two steps.
        """
        threading.Thread(target=self._prepare, daemon=True, name="vocabulary").start()

    def start(self, grammar: str) -> "Future[Compiled]":
        """Begin to compile, unless it was done before. Raises GrammarRefused.

        The future fails with GrammarRefused if the grammar is wrong or too complex.
        """
        if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
            raise GrammarRefused(f"the grammar is longer than {MAX_GRAMMAR_BYTES} bytes")
        job = self._jobs.get(grammar)
        if job is None:
            self._lost = [job for job in self._lost if not job.result.done()]
            if len(self._lost) >= MAX_LOST_WORKERS:
                raise GrammarRefused("too many grammars are being compiled that do not end")
            job = self._jobs[grammar] = _Job(grammar, Future())
            self._queue.put(job)
            self._staff()
        self._jobs.move_to_end(grammar)
        if len(self._jobs) > MAX_KEPT:
            self._jobs.popitem(last=False)
        return job.result

    def give_up(self, grammar: str) -> None:
        """Wait no longer for a compilation: it is left to its thread, and others get a new one."""
        job = self._jobs.pop(grammar, None)
        if job is None or job.result.done():
            return
        job.is_given_up = True
        if not job.result.cancel():  # a thread is at it
            self._lost.append(job)
            self._num_workers -= 1
            self._staff()

    def close(self) -> None:
        """Let the threads end."""
        for _ in range(self._num_workers):
            self._queue.put(None)
        self._num_workers = 0
        self._jobs.clear()

    def _staff(self) -> None:
        while self._num_workers < NUM_WORKERS:
            self._num_workers += 1
            with _stack_size(STACK_BYTES):
                threading.Thread(target=self._work, daemon=True, name="grammar").start()

    # --- in the threads ------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if not job.result.set_running_or_notify_cancel():
                continue
            try:
                job.result.set_result(self._compiled(job.grammar))
            except Exception as error:
                # Whatever it is, it concerns the requests that wait for this grammar.
                job.result.set_exception(error)
            if job.is_given_up:
                return  # another took this one's place

    def _compiled(self, grammar: str) -> Compiled:
        tokenizer = self._prepared_tokenizer()
        matcher = self._compile_one(tokenizer, grammar)
        if matcher.is_error():
            raise GrammarRefused(_first_line(matcher.get_error()))
        return Compiled(matcher, tokenizer)

    def _prepare(self) -> None:
        with contextlib.suppress(Exception):  # told to whoever wants to use it
            self._prepared_tokenizer()

    def _prepared_tokenizer(self) -> LLTokenizer:
        with self._preparing:
            if self._tokenizer is None:
                self._tokenizer = Future()
                try:
                    self._tokenizer.set_result(_build_tokenizer(self._source()))
                except Exception as error:
                    # Kept for everybody who asks: the files will not change.
                    self._tokenizer.set_exception(error)
            return self._tokenizer.result()


def _compile(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)


def _build_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    return LLTokenizer(vocabulary.tokenizer_json, eos_token=list(vocabulary.stop_ids) or None)


def _first_line(message: str) -> str:
    return message.partition("\n")[0][:MESSAGE_CHARACTERS]


@contextlib.contextmanager
def _stack_size(num_bytes: int) -> Iterator[None]:
    """Threads started meanwhile have a stack of this size; by whom does not matter."""
    usual = threading.stack_size(num_bytes)
    try:
        yield
    finally:
        threading.stack_size(usual)
