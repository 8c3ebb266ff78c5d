"""Teaches a small Qwen3 model some replies by heart: token ids in, weights out.

Knows torch and transformers' model, and nothing of texts, folders or the network. Chance comes
from one seed and sums are added up by a fixed number of threads, so one machine gives the same
weights every time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor
from torch.nn import Parameter, functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from neuron_agent.demo.lessons import Recipe

_MAX_THREADS = 2  # more would add up in another order, and give other weights on larger machines
_NOT_LEARNED = -100  # cross_entropy's default `ignore_index`


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the reply to it, both as token ids; the reply ends with its stop token."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]

    @property
    def weight(self) -> float:
        """What a token of the reply counts: a long text shall not drown a short one."""
        return float(len(self.reply_ids) ** -0.5)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


class NotLearned(Exception):
    """The model still does not know its texts. A fault of the recipe, never of the caller."""


def train(
    config: Qwen3Config,
    recipe: Recipe,
    epoch: Callable[[Random], Iterator[Example]],
    exam: Sequence[Example],
    report: Callable[[str], None],
) -> Qwen3ForCausalLM:
    """Return a model that knows the exam. Raises NotLearned.

    Sets the number of threads and the seed of the whole process.
    """
    torch.set_num_threads(min(_MAX_THREADS, len(os.sched_getaffinity(0))))
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(config)
    optimiser = _Optimiser(model)
    batches = _endless_batches(epoch, Random(recipe.seed), recipe.batch_tokens)
    num_steps, rate = recipe.num_steps, recipe.learning_rate
    for _ in range(recipe.max_rounds):
        _learn(model, optimiser, list(islice(batches, num_steps)), rate, report)
        weakest = _weakest_probability(model, exam)
        report(f"knows each token of its texts with {100 * weakest:.0f} % certainty or more")
        if weakest >= recipe.pass_probability:
            return model
        num_steps, rate = recipe.num_extra_steps, recipe.learning_rate / 5
    raise NotLearned(f"{100 * weakest:.0f} % after {recipe.max_rounds} rounds")


def _learn(
    model: Qwen3ForCausalLM,
    optimiser: "_Optimiser",
    batches: Sequence[list[Example]],
    learning_rate: float,
    report: Callable[[str], None],
) -> None:
    for num_done, batch in enumerate(batches):
        weight = sum(len(example.reply_ids) * example.weight for example in batch)
        loss = 0.0
        for group in _of_about_one_length(batch):
            share = _total_loss(model, group) / weight
            torch.autograd.backward(share)
            loss += share.item()
        optimiser.step(learning_rate * _pace(num_done, len(batches)))
        if num_done % 10 == 9:
            report(f"step {num_done + 1} of {len(batches)}, loss {loss:.3f}")


def _pace(num_done: int, num_steps: int) -> float:
    """The share of the learning rate: up over 10 steps, level, then down from 40 % on."""
    return min(1.0, (num_done + 1) / 10, (num_steps - num_done) / (0.6 * num_steps))


def _total_loss(model: Qwen3ForCausalLM, group: Sequence[Example]) -> Tensor:
    """Return the weighted loss summed over all tokens of the replies."""
    ids, labels = _tensors(group)
    learned = labels != _NOT_LEARNED  # [B, T]
    hidden = model.model(input_ids=ids).last_hidden_state[learned]  # [L, H]
    losses = functional.cross_entropy(model.lm_head(hidden), labels[learned], reduction="none")
    weights = torch.tensor([example.weight for example in group])  # [B]
    return torch.dot(losses, weights.repeat_interleave(learned.sum(dim=1)))


def _tensors(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return ids and the id that should come next, both [B, T], padded at the end."""
    length = max(len(example) for example in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full((len(batch), length), _NOT_LEARNED)
    for row, example in enumerate(batch):
        ids[row, : len(example)] = torch.tensor(example.prompt_ids + example.reply_ids)
        reply_begin = len(example.prompt_ids) - 1
        labels[row, reply_begin : len(example) - 1] = torch.tensor(example.reply_ids)
    return ids, labels


@torch.no_grad()
def _weakest_probability(model: Qwen3ForCausalLM, exam: Sequence[Example]) -> float:
    """Return the smallest probability the model gives to a token of a reply it should know."""
    return min(torch.exp(-_worst_loss(model, example)).item() for example in exam)


def _worst_loss(model: Qwen3ForCausalLM, example: Example) -> Tensor:
    ids, labels = _tensors([example])
    logits = model(input_ids=ids).logits[0]  # [T, V]
    return functional.cross_entropy(logits, labels[0], reduction="none").max()


def _endless_batches(
    epoch: Callable[[Random], Iterator[Example]], dice: Random, batch_tokens: int
) -> Iterator[list[Example]]:
    """Yield batches of at least `batch_tokens`, mixed from short and long, known and unknown."""
    batch: list[Example] = []
    while True:
        examples = list(epoch(dice))
        dice.shuffle(examples)
        for example in examples:
            batch.append(example)
            if sum(map(len, batch)) >= batch_tokens:
                yield batch
                batch = []


def _of_about_one_length(batch: Sequence[Example]) -> list[list[Example]]:
    """Split a batch into groups that need little padding."""
    groups: list[list[Example]] = []
    for example in sorted(batch, key=len):
        if not groups or len(example) > 1.4 * len(groups[-1][0]):
            groups.append([])
        groups[-1].append(example)
    return groups


class _Optimiser:
    """Muon for the weight matrices of the layers, Adam for the embedding and the norms' vectors."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        matrices: list[Parameter] = []
        others: list[Parameter] = []
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim == 2 and "embed" not in name
            (matrices if is_matrix else others).append(parameter)
        self._model = model
        self._muon = Muon(matrices)
        self._adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, learning_rate: float) -> None:
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self._muon.step(learning_rate)
        self._model.zero_grad()


class Muon:
    """Gradient descent for weight matrices that makes every step an orthogonal matrix.

    Learns by heart in about half of Adam's steps. Source: Jordan et al., 2024, "Muon: An optimizer
    for hidden layers"; the scale is Moonshot's, 2025, which lets it share Adam's learning rate.
    Not torch.optim.Muon, which computes in bfloat16: many CPUs are very slow at that.
    """

    def __init__(self, matrices: Sequence[Parameter], momentum: float = 0.95) -> None:
        by_shape: dict[torch.Size, list[Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        self._groups = [
            (group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()
        ]
        self._momentum = momentum

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for group, mean in self._groups:
            gradients = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            mean.lerp_(gradients, 1 - self._momentum)
            directions = orthogonalise(gradients.lerp(mean, self._momentum))  # [N, R, C]
            scale = 0.2 * max(directions.shape[1:]) ** 0.5
            for matrix, direction in zip(group, directions, strict=True):
                matrix.sub_(direction, alpha=learning_rate * scale)


def orthogonalise(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Return matrices [N, R, C] with their singular values brought near 1, by Newton-Schulz.

    The coefficients are Jordan's: they trade exactness for speed and end between 0.7 and 1.2.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT, num_iterations).mT
    result: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = result @ result.mT  # [N, R, R]
        result = 3.4445 * result + (2.0315 * gram @ gram - 4.7750 * gram) @ result
    return result
