"""Accuracy by lm-eval: the one module that knows it.

Scores are lm-eval's own, made with its evaluator on the model in memory. What differs from its
command line is stated here: log-probabilities are taken in fp32 (in bf16 they round so much that
a dense and a quantized model score alike), the batch size is fixed because scores depend on it,
and items come back one by one, so that two models can be compared in pairs.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, Any

import lm_eval
import lm_eval.tasks
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import nn

from tradebench import reference
from tradebench.errors import UserError
from tradebench.program.loop import surrounding
from tradebench.result import Measurement
from tradebench.techniques import Technique
from tradebench.trial import Evaluate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Z95 = NormalDist().inv_cdf(0.975)
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
        self.tasks = dict(self._load())

    def _load(self) -> Iterator[tuple[str, Any]]:
        """Every task whose data can be reached; the others are noted, never scored."""
        for name in self.settings.tasks:
            manager = TaskManager(include_path=_folders(name), include_defaults=False)
            if name not in manager.all_tasks:
                manager = TaskManager()  # seconds: it indexes everything that lm-eval ships
            if name not in manager.all_tasks:
                raise UserError(f"lm-eval knows no task '{name}'")
            try:
                loaded = manager.load([name])["tasks"]
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
                self.skipped.append(
                    f"task {name} was skipped: its data is not available ({reason})"
                )
                continue
            for key, task in loaded.items():
                self._settle(task)
                yield key, task

    def _settle(self, task: Any) -> None:
        """What lm-eval's own command line settles before it evaluates."""
        wanted = self.settings.num_fewshot
        if wanted is not None:
            task.set_config(key="num_fewshot", value=wanted)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=self.settings.seed)

    def score(self, model: nn.Module, techniques: Sequence[Technique]) -> Scores:
        """Evaluate the model under the techniques' forward contexts; its mode is restored."""
        training = model.training
        device = next(model.parameters()).device.type
        torch.manual_seed(self.settings.seed)
        with surrounding(techniques, device), contextlib.redirect_stdout(io.StringIO()):
            found = lm_eval.evaluate(
                lm=HFLM(
                    pretrained=model,
                    tokenizer=self.tokenizer,
                    batch_size=self.settings.batch_size,
                    max_length=self.max_length,
                    add_bos_token=True,
                    softmax_dtype="float32",
                ),
                task_dict={"tasks": self.tasks, "groups": {}, "group_map": {}},
                limit=self.settings.limit,
                bootstrap_iters=0,  # intervals are made here, from the items
                log_samples=True,
                apply_chat_template=self.settings.chat_template,
            )
        model.train(training)
        return self._collect(found)

    def _collect(self, found: Mapping[str, Any]) -> Scores:
        scores = Scores(skipped=list(self.skipped))
        for name, task in self.tasks.items():
            samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
            items = [_item(name, task, sample) for sample in samples]
            scores.items += items
            scores.measurements |= _measure(name, task, found["results"][name], items)
        return scores

    def rehearse(self, model: nn.Module, techniques: Sequence[Technique]) -> None:
        """One batch of each kind of request at its longest, for the memory it needs.

        Likelihoods take one forward pass over the longest item and the log-softmax that lm-eval
        takes of it. Generation is bounded from above by reading the longest prompt together with
        everything it may generate at once, and one more token from the cache.
        """
        training = model.training
        model.eval()
        device = next(model.parameters()).device
        with torch.no_grad(), surrounding(techniques, device.type):
            for generates, length in self._longest().items():
                shape = (self.settings.batch_size, min(length, self.max_length))
                tokens = torch.zeros(shape, dtype=torch.long, device=device)
                if generates:
                    cache = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
                    model(tokens[:, :1], past_key_values=cache, use_cache=True)
                else:
                    logits = model(tokens, use_cache=False).logits
                    torch.nn.functional.log_softmax(logits, dim=-1, dtype=torch.float32)
        model.train(training)

    def _longest(self) -> dict[bool, int]:
        """The longest request in tokens, for generation (True) and for likelihoods (False)."""
        longest: dict[bool, int] = {}
        for task in self.tasks.values():
            generates = task.OUTPUT_TYPE not in LIKELIHOODS
            with contextlib.redirect_stdout(io.StringIO()):
                task.build_all_requests(
                    limit=self.settings.limit,
                    apply_chat_template=self.settings.chat_template,
                    chat_template=self.tokenizer.apply_chat_template,
                )
            texts = {
                request.args[0] + ("" if generates else str(request.args[-1]))
                for request in task.instances
            }
            # The longest texts in characters include the longest in tokens, but for odd scripts.
            candidates = sorted(texts, key=len, reverse=True)[:64]
            length = max(len(self.tokenizer(text)["input_ids"]) for text in candidates)
            if generates:
                length += task.config.generation_kwargs.get("max_gen_toks", 256)
            longest[generates] = max(longest.get(generates, 0), length)
        return longest


def wilson(mean: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share after Wilson 1927, which stays inside 0 and 1."""
    if count == 0:
        return (0.0, 1.0)
    middle = mean + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(mean * (1 - mean) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return ((middle - spread) / scale, (middle + spread) / scale)


def _folders(task: str) -> list[str]:
    """Where the files of a task probably are: indexing all that lm-eval ships takes seconds."""
    if task in reference.TASK_NAMES:
        return [str(reference.TASKS)]
    shipped = Path(lm_eval.tasks.__file__).parent
    family = shipped / task.split("_")[0]
    return [str(family)] if family.is_dir() else []


def _item(name: str, task: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    """One item's outcome: its metrics as numbers and, where one exists, the answer's NLL."""
    metrics = {
        metric: float(sample[metric])
        for metric in sample["metrics"]
        if isinstance(sample[metric], int | float) or hasattr(sample[metric], "item")
    }
    return {
        "task": name,
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "target_hash": sample["target_hash"],
        "metrics": metrics,
        "nll": _answer_nll(task, sample),
    }


def _answer_nll(task: Any, sample: Mapping[str, Any]) -> float | None:
    """Minus the log-likelihood of the right answer, in nats; None where none was asked for."""
    responses = sample["filtered_resps"]
    match task.OUTPUT_TYPE:
        case "multiple_choice":
            gold = sample["target"]
            return -float(responses[int(gold)][0]) if str(gold).lstrip("-").isdigit() else None
        case "loglikelihood":
            return -float(responses[0][0])
    return None


def _measure(
    name: str, task: Any, results: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> dict[str, Measurement]:
    """The task's metrics as lm-eval reports them, the first being its headline."""
    found: dict[str, Measurement] = {}
    for key, value in results.items():
        metric = key.split(",")[0]
        if not isinstance(value, int | float) or metric.endswith("_stderr") or "," not in key:
            continue
        if task.OUTPUT_TYPE in ("loglikelihood", "loglikelihood_rolling") and metric != "acc":
            continue  # a perplexity of the answers is answer_nll with another face
        label = (
            f"accuracy.{name}" if f"accuracy.{name}" not in found else f"accuracy.{name}.{metric}"
        )
        if metric == "acc" and task.OUTPUT_TYPE == "loglikelihood":
            label = f"accuracy.{name}.greedy"
        values = [item["metrics"][metric] for item in items if metric in item["metrics"]]
        binary = bool(values) and set(values) <= {0.0, 1.0}
        found[label] = Measurement(
            value=float(value),
            unit="1",
            better="more",
            interval=wilson(float(value), len(values)) if binary else None,
        )
    likelihoods = [item["nll"] for item in items if item["nll"] is not None]
    if likelihoods:
        found[f"answer_nll.{name}"] = _mean_nll(likelihoods)
    return found


def _mean_nll(values: Sequence[float]) -> Measurement:
    mean = fmean(values)
    spread = Z95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    interval = (mean - spread, mean + spread) if math.isfinite(spread) else None
    return Measurement(value=mean, unit="nat", interval=interval)
