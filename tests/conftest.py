"""What tests share: a tiny random Llama with a tokenizer, tiny data, and trials made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tradebench.trial import Trial

if TYPE_CHECKING:
    from torch import nn

# Set before anything imports torch: one thread keeps losses the same on every machine and leaves
# the other cores alone. No test may reach the network.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

TEXT = """
which town lies north of the river and who lives there Mira Tobin Selka in to east west south house
market ? . ,
"""
WORDS = [*TEXT.split(), *(f"w{number}" for number in range(200))]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> "
    "{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
SPECIAL = ("<|pad|>", "<|unknown|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")
LAYERS = 4


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama of four layers on disk, every matrix a multiple of 64 wide and high."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return str(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=128,
    )


@pytest.fixture(scope="session")
def tiny_data_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Conversations of different lengths in a JSONL file, for `budget.data = {"file": ...}`."""
    places = ("north", "east", "south", "west")
    people = ("Mira", "Tobin", "Selka")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{person} lives {place} of the river . who ?"},
                {"role": "assistant", "content": " ".join([person, *["lives", place] * repeats])},
            ]
        }
        for repeats, place in enumerate(places, start=1)
        for person in people
    ]
    file: Path = tmp_path_factory.mktemp("data") / "tiny.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="session")
def tiny_trial(tiny_model_path: str) -> Callable[..., Trial]:
    """Makes a trial on the tiny model from `settings` (as in a Result) and fields of the budget.

    Three steps of random data unless told otherwise.
    """

    def make(settings: Mapping[str, Mapping[str, Any]], **budget: Any) -> Trial:
        defaults = {
            "steps": 3,
            "warmup": 0,
            "batch": 2,
            "sequence": 32,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "data": "random",
        }
        return Trial.from_payload(
            {
                "model": {"name": tiny_model_path},
                "budget": defaults | budget,
                "evaluate": {},
                "settings": settings,
            }
        )

    return make


class SilentMeter:
    """A meter that measures nothing."""

    bytes = None

    def phase(self, name: object) -> AbstractContextManager[None]:
        return nullcontext()

    def part(self, name: object) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()

    def trains(self, parameters: object) -> None: ...

    def holds(self, category: str, tensors: Iterable[object]) -> None: ...


@pytest.fixture(scope="session")
def compressed() -> Callable[[Trial], nn.Module]:
    """Loads a trial's model and compresses it: what is evaluated before training."""

    def build(trial: Trial) -> nn.Module:
        import torch

        from tradebench.program.model import load_model
        from tradebench.program.perform import prepare
        from tradebench.techniques import Stage

        request = prepare(trial).request
        torch.manual_seed(trial.budget.seed)
        model = load_model(trial.model, request)
        for part in trial.between(Stage.LOAD, Stage.QUANTIZE):
            model = part.model(model, request)
        return model

    return build


@pytest.fixture(scope="session")
def adapted() -> Callable[[Trial, nn.Module], nn.Module]:
    """Applies what follows compression to a compressed model: what is trained."""

    def build(trial: Trial, model: nn.Module) -> nn.Module:
        import torch

        from tradebench.program.perform import prepare
        from tradebench.techniques import Stage

        request = prepare(trial).request
        torch.manual_seed(trial.budget.seed)
        for part in trial.between(Stage.ADAPT, Stage.FEED):
            model = part.model(model, request)
        return model

    return build


@pytest.fixture(scope="session")
def run_trial() -> Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]:
    """Takes a trial through the whole program in this process, without a worker.

    Returns the trained model, the losses, and by slot what each technique proved.
    """

    def run(trial: Trial) -> tuple[nn.Module, tuple[float, ...], dict[str, Any]]:
        from tradebench.program.perform import Judges, perform, prepare

        models: list[nn.Module] = []
        effects: dict[str, Any] = {}

        def trained(model: nn.Module) -> None:
            models.append(model)
            effects.update({part.slot: part.effect(model) for part in trial.techniques})

        training = perform(
            trial,
            prepare(trial),
            seed=trial.budget.seed,
            meter=SilentMeter(),
            enter=_enter,
            judges=Judges(before=_ignore, trained=trained, after=_ignore),
        )
        return models[0], training.losses, effects

    return run


@contextmanager
def _enter(phase: object) -> Iterator[Callable[[int], None]]:
    yield lambda step: None


def _ignore(model: object) -> None: ...
