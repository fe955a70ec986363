"""Accuracy by lm-eval: the one module that knows it.

Scores are lm-eval's own, made with its evaluator on the model in memory. What differs from its
command line is stated here: log-probabilities are taken in fp32 (in bf16 they round so much that
a dense and a quantized model score alike), the batch size is fixed because scores depend on it,
and items come back one by one, so that two models can be compared in pairs.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, Any

import lm_eval
import lm_eval.tasks
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from torch import nn

from tradebench import reference
from tradebench.errors import UserError
from tradebench.program.loop import surrounding
from tradebench.result import Measurement
from tradebench.techniques import Technique
from tradebench.trial import Evaluate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HASH_DIGITS = 12
Z95 = NormalDist().inv_cdf(0.975)
GENERATED = 256  # tokens, where a task sets no limit: lm-eval's own
LIKELIHOODS = ("loglikelihood", "multiple_choice", "loglikelihood_rolling")


@dataclass
class Scores:
    """What an evaluation found, by task and metric, and every item's own outcome."""

    measurements: dict[str, Measurement] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class Evaluator:
    """The tasks of one evaluation, loaded once and asked before and after training."""

    def __init__(self, settings: Evaluate, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
        """Load the tasks; `limit` is the longest sequence that the model takes."""
        self.settings = settings
        self.tokenizer = tokenizer
        self.max_length = settings.max_length or limit
        self.skipped: list[str] = []
        self.tasks: dict[str, Any] = {}
        self.groups: dict[str, Any] = {}
        for name in settings.tasks:
            self._load(name)

    def _load(self, name: str) -> None:
        """Load a task, or every task of a group; where data cannot be reached, note it."""
        manager = _manager(name)
        try:
            # lm-eval prints what it loads.
            with contextlib.redirect_stdout(io.StringIO()):
                loaded = manager.load([name])
        except (OSError, ValueError) as error:  # what the datasets library raises
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            self.skipped.append(f"task {name} was skipped: its data is not available ({reason})")
            return
        for task in loaded["tasks"].values():
            self._settle(task)
        self.tasks |= loaded["tasks"]
        self.groups |= loaded["groups"]

    def _settle(self, task: Any) -> None:
        """What lm-eval's own command line settles before it evaluates."""
        wanted, own = self.settings.num_fewshot, task.get_config("num_fewshot")
        if own is None:
            task.set_config(key="num_fewshot", value=wanted or 0)
        elif wanted is not None and own != 0:  # a task that says 0 means it
            task.set_config(key="num_fewshot", value=wanted)

    def score(self, model: nn.Module, techniques: Sequence[Technique]) -> Scores:
        """Evaluate the model under the techniques' forward contexts.

        The model's mode and the random state are left as they were.
        """
        if not self.tasks:
            return Scores(skipped=list(self.skipped))
        self._draw_examples_anew()
        with (
            _undisturbed(model, self.settings.seed),
            surrounding(techniques, next(model.parameters()).device.type),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            found = lm_eval.evaluate(
                lm=self._harness(model),
                task_dict={
                    "tasks": self.tasks,
                    "groups": self.groups,
                    "group_map": {key: group.child_names for key, group in self.groups.items()},
                },
                limit=self.settings.limit,
                bootstrap_iters=0,  # intervals are made here, from the items
                log_samples=True,
                apply_chat_template=self.settings.chat_template,
                fewshot_as_multiturn=True,
            )
        return self._collect(found)

    def _draw_examples_anew(self) -> None:
        """Show every evaluation the same few-shot examples: a task's generator moves on."""
        for task in self.tasks.values():
            task.set_fewshot_seed(seed=self.settings.seed)

    def _harness(self, model: nn.Module) -> HFLM:
        return HFLM(
            pretrained=model,
            tokenizer=self.tokenizer,
            batch_size=self.settings.batch_size,
            max_length=self.max_length,
            add_bos_token=True,
            softmax_dtype="float32",
        )

    def _collect(self, found: Mapping[str, Any]) -> Scores:
        scores = Scores(skipped=list(self.skipped))
        for name, task in self.tasks.items():
            items = _items(name, task, found["samples"][name])
            scores.items += items
            scores.measurements |= _measure(name, task.OUTPUT_TYPE, found, items)
        for name in self.groups:
            scores.measurements |= _measure(name, "group", found, [])
        return scores

    def rehearse(self, model: nn.Module, techniques: Sequence[Technique]) -> None:
        """One batch of each kind of request at its longest, for the memory it needs.

        Likelihoods take two forward passes over the longest item and the log-softmax that lm-eval
        takes of it, because the first is still there when the second is made. Generation is bounded
        from above by reading the longest prompt together with everything it may generate at once,
        and one more token from the cache.
        """
        device = next(model.parameters()).device
        with (
            _undisturbed(model, self.settings.seed),
            torch.no_grad(),
            surrounding(techniques, device.type),
        ):
            for generates, length in self.longest.items():
                shape = (self.settings.batch_size, min(length, self.max_length))
                if generates:
                    _generate_longest(model, shape, device)
                else:
                    _read_longest(model, shape, device)

    @cached_property
    def longest(self) -> dict[bool, int]:
        """The longest request in tokens, for generation (True) and for likelihoods (False)."""
        longest: dict[bool, int] = {}
        self._draw_examples_anew()
        for task in self.tasks.values():
            with contextlib.redirect_stdout(io.StringIO()):
                task.build_all_requests(
                    limit=self.settings.limit,
                    apply_chat_template=self.settings.chat_template,
                    fewshot_as_multiturn=True,
                    chat_template=self._render,
                )
            generates = task.OUTPUT_TYPE not in LIKELIHOODS
            # A request is a prompt, and then an answer to score or settings of the generation.
            texts = {"".join(a for a in r.args if isinstance(a, str)) for r in task.instances}
            length = max(map(len, self.tokenizer(list(texts))["input_ids"]))
            if generates:
                wanted = normalize_gen_kwargs(task.config.generation_kwargs, GENERATED)
                length += wanted["max_gen_toks"]
            longest[generates] = max(longest.get(generates, 0), length)
        return longest

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """A conversation as text, as lm-eval renders it."""
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )


@contextlib.contextmanager
def _undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode and a seed of its own; mode and random state come back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        model.train(training)


def _read_longest(model: nn.Module, shape: tuple[int, int], device: torch.device) -> None:
    # While lm-eval works on a batch it still holds the log-probabilities of the one before.
    before = None
    for _ in range(2):
        rows = [torch.zeros(shape[1], dtype=torch.long, device=device) for _ in range(shape[0])]
        logits = model(torch.stack(rows), use_cache=False).logits
        before = torch.nn.functional.log_softmax(logits, dim=-1, dtype=torch.float32)
        del logits
    del before


def _generate_longest(model: nn.Module, shape: tuple[int, int], device: torch.device) -> None:
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    cache = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
    model(tokens[:, :1], past_key_values=cache, use_cache=True)


def wilson(mean: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share after Wilson 1927, which stays inside 0 and 1."""
    if count == 0:
        return (0.0, 1.0)
    middle = mean + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(mean * (1 - mean) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return ((middle - spread) / scale, (middle + spread) / scale)


def _manager(task: str) -> TaskManager:
    """The smallest index of tasks that knows this one: lm-eval's own takes seconds to read.

    Raises:
        UserError: lm-eval knows no such task.
    """
    manager = TaskManager(include_path=_folders(task), include_defaults=False)
    entry = manager.task_index.get(task)
    if entry is None or (entry.kind is Kind.TAG and task not in reference.TASK_NAMES):
        manager = TaskManager()  # members of a tag may lie in any folder
    if task not in manager.task_index:
        near = difflib.get_close_matches(task, manager.task_index, n=1)
        raise UserError(
            f"lm-eval knows no task '{task}'" + (f", did you mean '{near[0]}'?" if near else "")
        )
    return manager


def _folders(task: str) -> list[str]:
    """Where the files of a task probably are."""
    if task in reference.TASK_NAMES:
        return [str(reference.TASKS)]
    shipped = Path(lm_eval.tasks.__file__).parent
    words = task.split("_")
    families = [shipped / "_".join(words[:count]) for count in range(len(words), 0, -1)]
    return [str(family) for family in families if family.is_dir()][:1]


def _items(name: str, task: Any, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every item's outcome in the order of the data; several filters of one task join in it."""
    first = samples[0]["filter"]
    items: dict[int, dict[str, Any]] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        item = items.setdefault(
            sample["doc_id"],
            {
                "task": name,
                "doc_id": sample["doc_id"],
                # Enough digits to pair items by; whole digests would fill the disk.
                "doc_hash": sample["doc_hash"][:HASH_DIGITS],
                "target_hash": sample["target_hash"][:HASH_DIGITS],
                "metrics": {},
                "nll": _answer_nll(task, sample),
            },
        )
        item["metrics"] |= {
            _metric_name(metric, sample["filter"], first): float(sample[metric])
            for metric in sample["metrics"]
            if isinstance(sample[metric], int | float) or hasattr(sample[metric], "item")
        }
    return list(items.values())


def _metric_name(metric: str, used: str, first: str) -> str:
    """The metric's own name; behind it the filter, where it is not the task's first."""
    return metric if used == first else f"{metric}.{used}"


def _answer_nll(task: Any, sample: Mapping[str, Any]) -> float | None:
    """Minus the log-likelihood of the right answer, in nats; None where none was asked for."""
    responses = sample["filtered_resps"]
    match task.OUTPUT_TYPE:
        case "multiple_choice":
            gold = _gold(task, sample)
            return None if gold is None else -float(responses[gold][0])
        case "loglikelihood":
            return -float(responses[0][0])
    return None


def _gold(task: Any, sample: Mapping[str, Any]) -> int | None:
    """The index of the right choice, found as lm-eval finds it; None where it is not one."""
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    choices = task.doc_to_choice(sample["doc"])
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else None
    return gold if isinstance(gold, int) and 0 <= gold < len(choices) else None


def _measure(
    name: str, kind: str, found: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> dict[str, Measurement]:
    """The metrics of a task or group as lm-eval reports them, the first being its headline."""
    keys = [key.split(",") for key in found["results"][name] if "," in key]
    measured: dict[str, Measurement] = {}
    for metric, used in keys:
        value = found["results"][name][f"{metric},{used}"]
        if not isinstance(value, int | float) or metric.endswith("_stderr"):
            continue
        if kind == "loglikelihood" and metric == "perplexity":
            continue  # answer_nll with another face
        full = _metric_name(metric, used, keys[0][1])
        label = f"accuracy.{name}.{full}" if measured else f"accuracy.{name}"
        if metric == "acc" and kind == "loglikelihood":
            label = f"accuracy.{name}.greedy"
        values = [item["metrics"][full] for item in items if full in item["metrics"]]
        binary = bool(values) and set(values) <= {0.0, 1.0}
        more = found["higher_is_better"].get(name, {}).get(metric)
        measured[label] = Measurement(
            value=float(value),
            unit="1",
            better="less" if more is False else "more",
            interval=wilson(float(value), len(values)) if binary else None,
        )
    likelihoods = [item["nll"] for item in items if item["nll"] is not None]
    if likelihoods:
        measured[f"answer_nll.{name}"] = _mean_nll(likelihoods)
    return measured


def _mean_nll(values: Sequence[float]) -> Measurement:
    mean = fmean(values)
    spread = Z95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    interval = (mean - spread, mean + spread) if math.isfinite(spread) else None
    return Measurement(value=mean, unit="nat", interval=interval)
