"""Trains the reference model from scratch on the micro-world's documents."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tradebench.reference.items import corpus
from tradebench.reference.world import BOS, END, PAD, World

Progress = Callable[[int, int, float], None]
"""Called after each step with its number, how many there will be, and the loss on answers."""


@dataclass(frozen=True)
class Recipe:
    """How the checkpoint is trained; the defaults made the frozen one.

    They read 6.1 million tokens in about seven minutes of one core. With 4,800 steps the tasks
    score the same, but new facts are learnt far more slowly.
    """

    steps: int = 2000
    batch: int = 48
    """rows per step"""
    length: int = 64
    """tokens per row"""
    learning_rate: float = 3e-3
    warmup: int = 50
    """steps"""
    decay: float = 0.5
    """share of the steps, at the end, over which the learning rate falls to 2 %"""
    prompt_weight: float = 0.3
    """weight of a prompt token in the loss; an answer token weighs 1"""
    documents: int = 200_000
    """drawn at a time"""
    seed: int = 0
    """of the weights and of the order of documents; the world has its own"""


def config(world: World) -> LlamaConfig:
    """Widths are multiples of 64 (bitsandbytes' blocks) and of 128 (GPTQ's groups)."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=-(-len(world.vocabulary) // 128) * 128,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=world.index[PAD],
        bos_token_id=world.index[BOS],
        eos_token_id=world.index[END],
    )


@dataclass(frozen=True)
class Rows:
    """A batch of documents side by side, [batch, length] each."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    """of each token in the loss; 0 for padding and for `<s>`"""
    documents: NDArray[np.int64]
    """number of the document within its row, from 1; 0 is padding"""

    @classmethod
    def empty(cls, batch: int, length: int) -> "Rows":
        """A batch of padding, to be filled."""
        shape = (batch, length)
        ids, documents = np.zeros((2, *shape), np.int64)
        return cls(ids, np.zeros(shape, np.float32), documents)

    def positions(self) -> NDArray[np.int64]:
        """[batch, length] position within the document, as evaluation will see it."""
        place = np.broadcast_to(np.arange(self.ids.shape[1]), self.ids.shape)
        starts = np.diff(self.documents, axis=1, prepend=-1) != 0
        return place - np.maximum.accumulate(np.where(starts, place, 0), axis=1)

    def mask(self) -> NDArray[np.float32]:
        """[batch, 1, length, length] added to attention scores: back, and not past the document.

        Without it neighbours contradict each other (the same key, another value); a first run
        without it took about twice the steps to learn the facts.
        """
        same = self.documents[:, :, None] == self.documents[:, None, :]
        seen = same & np.tri(self.ids.shape[1], dtype=np.bool_)
        return np.where(seen, np.float32(0), np.float32(-1e9))[:, None]


def rows(world: World, recipe: Recipe) -> Iterator[Rows]:
    """Batches without end, packed from whole documents in random order."""
    rng = np.random.default_rng([recipe.seed, 11])
    while True:
        ids: list[NDArray[np.int16]] = []
        weights: list[NDArray[np.float64]] = []
        for documents in corpus(world, rng, recipe.documents):
            used = documents.ids != 0
            ends = np.cumsum(used.sum(axis=1))[:-1]
            weight = np.where(documents.answers, 1.0, recipe.prompt_weight)
            weight[:, 0] = 0.0  # <s> is given, not predicted
            ids += np.split(documents.ids[used], ends)
            weights += np.split(weight[used], ends)
        batch = Rows.empty(recipe.batch, recipe.length)
        row = place = number = 0
        for pick in rng.permutation(len(ids)):
            if place + len(ids[pick]) > recipe.length:
                row, place, number = row + 1, 0, 0
            if row == recipe.batch:
                yield batch
                batch, row = Rows.empty(recipe.batch, recipe.length), 0
            number += 1
            here = slice(place, place + len(ids[pick]))
            batch.ids[row, here] = ids[pick]
            batch.weights[row, here] = weights[pick]
            batch.documents[row, here] = number
            place += len(ids[pick])


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, head and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    rate = recipe.learning_rate
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step: linear warm-up, constant, linear decay to 2 %."""
    left = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup, max(0.02, left))


def train(world: World, recipe: Recipe, progress: Progress) -> LlamaForCausalLM:
    """A model trained from random weights on the CPU, in float32 with bfloat16 autocast."""
    torch.manual_seed(recipe.seed)
    # Eager attention: on the CPU and with rows this short it trains a third faster than sdpa.
    model = LlamaForCausalLM._from_config(config(world), attn_implementation="eager")
    model.train()
    optimizers = _optimizers(model, recipe)
    stream = rows(world, recipe)
    for step in range(recipe.steps):
        batch = next(stream)
        ids = torch.from_numpy(batch.ids)
        weight = torch.from_numpy(batch.weights)[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(
                input_ids=ids,
                attention_mask=torch.from_numpy(batch.mask()),
                position_ids=torch.from_numpy(batch.positions()),
                use_cache=False,
            ).logits[:, :-1]
        losses = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none"
        ).view_as(weight)
        ((losses * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _rate(recipe, step)
            optimizer.step()
            optimizer.zero_grad()
        progress(step + 1, recipe.steps, float(losses.detach()[weight == 1].mean()))
    return model.eval()
