"""The demo model's folder: an ordinary Hugging Face one, with a tokenizer and template of its own.

Knows tokenizers and transformers' file formats. What is learned is in `texts` and `lessons`, how
in `training`; when a folder is written and where is its caller's business.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config
from transformers.utils.logging import disable_progress_bar

from neuron_agent.demo import lessons, texts
from neuron_agent.demo.lessons import Lesson, Recipe
from neuron_agent.demo.training import Example, train

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")

_PADDING, _TURN_BEGIN, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_WORD = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+"  # letters, with the space or sign before them
    r"| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs, with the line ends after them
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_VOCABULARY_TOKENS = 2048
_CONTEXT_TOKENS = 32_768


def write_folder(folder: Path, recipe: Recipe, report: Callable[[str], None]) -> None:
    """Train the model and write it with its tokenizer. Raises NotLearned."""
    tokenizer = make_tokenizer()

    def epoch(dice: Random) -> Iterator[Example]:
        return (_example(tokenizer, lesson) for lesson in lessons.epoch(dice))

    exam = [_example(tokenizer, lesson) for lesson in lessons.exam()]
    model = train(_config(tokenizer), recipe, epoch, exam, report)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the byte-level BPE tokenizer with the chat template; every text has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_TOKENS - 3 - len(_MARKERS),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(), trainer)
    tokenizer.add_special_tokens([_PADDING, _TURN_BEGIN, _TURN_END])
    # Not special: decoding shows them, since they are part of what the model says.
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in _MARKERS])
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=_TURN_END,
        pad_token=_PADDING,
        model_max_length=_CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _tokenizer_texts() -> Iterator[str]:
    """Yield ASCII only: emoji and other scripts stay several tokens a character."""
    for lesson in lessons.exam():
        yield _ascii(lesson.reply)
        yield from (_ascii(str(message["content"])) for message in lesson.messages)
        yield from (json.dumps(tool) for tool in lesson.tools)
    for word in texts.COMMON_WORDS:
        yield from (word, f" {word}")
    yield texts.UNKNOWN_REPLY
    yield CHAT_TEMPLATE


def _ascii(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=_CONTEXT_TOKENS,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )


def _example(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> Example:
    prompt = tokenizer.apply_chat_template(
        list(lesson.messages),
        tools=list(lesson.tools) or None,
        add_generation_prompt=True,
        tokenize=False,
        **lesson.chat_template_kwargs,
    )
    assert isinstance(prompt, str)  # since it is not tokenised
    prompt_ids = tokenizer.encode(prompt + lesson.spoiled, add_special_tokens=False)
    reply_ids = tokenizer.encode(lesson.reply, add_special_tokens=False)
    return Example(tuple(prompt_ids), (*reply_ids, tokenizer.eos_token_id))
