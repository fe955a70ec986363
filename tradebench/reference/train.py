"""Trains the reference model from scratch: tokenizer, a four-layer Llama, its evaluation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tradebench.reference.items import corpus
from tradebench.reference.world import BOS, END, PAD, UNKNOWN, World, make_world

Progress = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """How the frozen checkpoint was trained: about 19 million tokens, 20 minutes on one core."""

    steps: int = 6000
    batch: int = 48
    length: int = 64
    """tokens per row"""
    learning_rate: float = 3e-3
    warmup: int = 50
    decay: float = 0.5
    """share of the steps, at the end, over which the learning rate falls to 2 %"""
    prompt_weight: float = 0.3
    """weight of a prompt token in the loss; an answer token weighs 1"""
    documents: int = 200_000
    """drawn at a time"""


def tokenizer(world: World) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(dict(world.index), unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, world.index[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def config(world: World) -> LlamaConfig:
    """Widths are multiples of 64 (bitsandbytes blocks) and of 128 (GPTQ groups)."""
    return LlamaConfig(
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


def rows(world: World, recipe: Recipe, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Token ids and loss weights [length], whole documents side by side, then padding."""
    rng = np.random.default_rng([seed, 11])
    while True:
        ids, weights = [], []
        for documents in corpus(world, rng, recipe.documents):
            used = documents.ids != 0
            ends = np.cumsum(used.sum(axis=1))[:-1]
            ids += np.split(documents.ids[used], ends)
            weight = np.where(documents.answers, 1.0, recipe.prompt_weight)
            weights += np.split(weight[used], ends)
        row, weight_row, place = np.zeros(recipe.length, np.int64), np.zeros(recipe.length, np.float32), 0
        for pick in rng.permutation(len(ids)):
            if place + len(ids[pick]) > recipe.length:
                yield row, weight_row
                row, weight_row, place = np.zeros_like(row), np.zeros_like(weight_row), 0
            row[place : place + len(ids[pick])] = ids[pick]
            weight_row[place : place + len(ids[pick])] = weights[pick]
            place += len(ids[pick])


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, head and norms."""
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(recipe: Recipe, seed: int, progress: Progress) -> LlamaForCausalLM:
    world = make_world()
    torch.manual_seed(seed)
    model = LlamaForCausalLM._from_config(config(world), attn_implementation="eager")
    model.train()
    optimizers = _optimizers(model, recipe)
    stream = rows(world, recipe, seed)
    for step in range(recipe.steps):
        left = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
        rate = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup, max(0.02, left))
        picked = [next(stream) for _ in range(recipe.batch)]
        ids = torch.from_numpy(np.stack([row for row, _ in picked]))
        weight = torch.from_numpy(np.stack([row for _, row in picked]))[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none"
        ).view_as(weight)
        ((losses * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        answer = weight == 1
        progress(step + 1, model, float(losses.detach()[answer].mean()))
    return model.eval()
