"""What tests share: a tiny random Llama with its data, trials made of them, and a browser."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from tradebench.result import Outcome, digest
from tradebench.techniques import catalogue, techniques
from tradebench.trial import Trial

if TYPE_CHECKING:
    from torch import nn

    from tradebench.predict.record import Record, RecordingMeter

Settings = Mapping[str, Mapping[str, Any]]

# Set before anything imports torch: one thread keeps losses the same on every machine and leaves
# the other cores alone. No test may reach the network.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

# No test may fail because the machine is busy. A machine that tests a GPU may lack hypothesis.
with contextlib.suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")

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
DRAWN, DRAWN_SLOWLY = 5, 60
# What the tiny batch needs to be cut into chunks, and few looks at data.
FITTING: dict[str, dict[str, Any]] = {
    "chunked": {"tokens": 16},
    "galore": {"rank": 4},
    "vera": {"initial": 1.0},
    "wanda": {"samples": 2},
    "sparsegpt": {"samples": 2},
}
LORA = {"method": "lora", "rank": 4}
NF4 = {"method": "nf4"}


# The catalogue's settings, for tests that hold for all of it.


def examples() -> list[dict[str, Any]]:
    """Every method that runs on a CPU at its defaults, and with each of its switches thrown."""
    found = []
    for technique in techniques():
        if technique.cuda_only is not None:
            continue
        for method in technique.methods():
            plain = {"slot": technique.slot, "method": method, **FITTING.get(method, {})}
            fields = technique.model_fields.items()
            thrown = {name: not field.default for name, field in fields if field.annotation is bool}
            found += [plain, *({**plain, name: value} for name, value in thrown.items())]
    return found


def settings_of(parts: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of these examples; the rank of adapters is that of a small model."""
    found = {}
    for part in parts:
        fields = {key: value for key, value in part.items() if key != "slot"}
        technique = catalogue()[part["slot"]][fields["method"]].model_validate(fields)
        settings = technique.settings()
        found[part["slot"]] = settings | ({"rank": 4} if "rank" in settings else {})
    return found


def made(settings: Settings) -> Trial:
    """A trial of these settings, which is not run."""
    return Trial.from_payload(
        {"model": {"name": "reference"}, "budget": {}, "evaluate": {}, "settings": settings}
    )


def named(settings: Settings) -> str:
    return made(settings).label.replace(" ", "-")


def alone() -> list[dict[str, dict[str, Any]]]:
    """Every example by itself, or beside lora where it cannot train by itself, or nf4."""
    helpers: tuple[dict[str, dict[str, Any]], ...] = ({}, {"adapters": LORA}, {"quantization": NF4})
    points = ([{**h, **settings_of((each,))} for h in helpers] for each in examples())
    return [next(point for point in each if not made(point).conflicts()) for each in points]


def drawing() -> Iterator[list[dict[str, Any]]]:
    """Legal combinations of examples, others whenever the code of a technique changes."""
    source = random.Random(digest([technique.version() for technique in techniques()]))
    by_slot = sorted(examples(), key=lambda example: str(example["slot"]))
    slots = [
        [None, *found]
        for _, group in itertools.groupby(by_slot, key=lambda example: example["slot"])
        for found in [list(group)]
    ]
    while True:
        point = [part for slot in slots if (part := source.choice(slot)) is not None]
        if len(point) > 1 and not made(settings_of(point)).conflicts():
            yield point


def drawn(count: int) -> list[dict[str, dict[str, Any]]]:
    """So many combinations."""
    found: list[dict[str, dict[str, Any]]] = []
    for settings in map(settings_of, drawing()):
        if len(found) == count:
            break
        if settings not in found:
            found.append(settings)
    return found


def covering() -> list[dict[str, dict[str, Any]]]:
    """A few combinations in which every example takes part.

    Each grows from one that is missing still, slot by slot, by what leaves it legal: drawing at
    random until the last example turns up in something legal takes far longer.
    """
    source = random.Random(digest([technique.version() for technique in techniques()]))
    beginnings = dict(zip(map(str, examples()), alone(), strict=True))
    found, missing = [], examples()
    while missing:
        point = beginnings[str(missing[0])]
        slots = sorted({part["slot"] for part in missing} - point.keys())
        for slot in source.sample(slots, len(slots)):
            wanted = [settings_of((part,)) for part in missing if part["slot"] == slot]
            grown = ({**point, **part} for part in source.sample(wanted, len(wanted)))
            point = next((each for each in grown if not made(each).conflicts()), point)
        found.append(point)
        missing = [part for part in missing if not settings_of((part,)).items() <= point.items()]
    return found


@pytest.fixture(params=[{}, *alone()], ids=named)
def every_method(request: pytest.FixtureRequest) -> Settings:
    """The settings of no technique, and of every method with every switch."""
    return cast("Settings", request.param)


@pytest.fixture(scope="session")
def all_methods() -> list[Settings]:
    """What `every_method` goes through."""
    return [{}, *alone()]


@pytest.fixture(params=covering(), ids=named)
def covering_combination(request: pytest.FixtureRequest) -> Settings:
    """Settings of several techniques, in which every method and switch occurs."""
    return cast("Settings", request.param)


@pytest.fixture(params=drawn(DRAWN), ids=named)
def drawn_combination(request: pytest.FixtureRequest) -> Settings:
    """Settings of several techniques, drawn."""
    return cast("Settings", request.param)


@pytest.fixture(params=drawn(DRAWN_SLOWLY)[DRAWN:], ids=named)
def further_combination(request: pytest.FixtureRequest) -> Settings:
    """More of them, for slow tests."""
    return cast("Settings", request.param)


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


@pytest.fixture(scope="session")
def fits_a_screen() -> Callable[[str], bool]:
    """Whether a text is read without scrolling."""

    def fits(text: str) -> bool:
        lines = text.splitlines()
        return len(lines) <= 24 and max(map(len, lines)) <= 80

    return fits


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Leave what the imports made out of garbage collections, of which a rehearsal makes two."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def recording() -> Callable[[Trial], RecordingMeter]:
    """Takes a trial through the fake world, as deep as it is, and writes everything down."""

    def rehearse(trial: Trial) -> RecordingMeter:
        from tradebench.predict.memory import perform_fake, reach
        from tradebench.predict.record import RecordingMeter

        meter = RecordingMeter()
        perform_fake(trial, reach(trial).materials, meter, Outcome())
        return meter

    return rehearse


@pytest.fixture(scope="session")
def recorded(recording: Callable[[Trial], RecordingMeter]) -> Callable[[Trial], Record]:
    """The record of a trial, as deep as it is."""

    def record(trial: Trial) -> Record:
        from tradebench.predict.record import Record

        return Record.of(recording(trial).tracker)

    return record


@pytest.fixture(scope="session")
def differences() -> Callable[[Record, Record], list[str]]:
    """Names what differs between two records; where operations are numbered makes no difference."""

    def compare(one: Record, other: Record) -> list[str]:
        ours, theirs = _plainly(one), _plainly(other)
        return [name for name in ours if ours[name] != theirs[name]]

    return compare


def _plainly(record: Record) -> dict[str, list[Any]]:
    """What is in a record, by value where it is numbered."""
    from tradebench.predict.recorder import CALL

    events = record.events.tolist()
    return {
        "events": [min(event, CALL) for event in events],
        "operations": [record.operations[event - CALL] for event in events if event >= CALL],
        "layers": record.layers.tolist(),
        "sizes": record.sizes.tolist(),
        "categories": record.categories.tolist(),
        "paths": [record.modules[index] for index in record.paths],
        "marks": list(record.marks),
    }


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
def needed() -> Callable[[Trial], None]:
    """Skips a test of a trial that takes packages which are not installed here."""

    def skip(trial: Trial) -> None:
        for part in trial.techniques:
            if (reason := part.missing()) is not None:
                pytest.skip(reason)

    return skip


@pytest.fixture(scope="session")
def compressed(needed: Callable[[Trial], None]) -> Callable[[Trial], nn.Module]:
    """Loads a trial's model and compresses it: what is evaluated before training."""

    def build(trial: Trial) -> nn.Module:
        import torch

        from tradebench.program.model import load_model
        from tradebench.program.perform import prepare
        from tradebench.techniques import Stage

        needed(trial)
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
def run_trial(
    needed: Callable[[Trial], None],
) -> Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]:
    """Takes a trial through the whole program in this process, without a worker.

    Returns the trained model, the losses, and by slot what each technique proved.
    """

    def run(trial: Trial) -> tuple[nn.Module, tuple[float, ...], dict[str, Any]]:
        from tradebench.program.perform import Judges, perform, prepare

        needed(trial)
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


def _ignore(*seen: object) -> None: ...


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, the one of the system; where it or playwright is missing, skip."""
    playwright: Any = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed", exc_type=ImportError
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()
