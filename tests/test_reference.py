"""The reference model: its generator, its data, its tasks and its checkpoint."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from tradebench import reference
from tradebench.reference.build import build, write_checksums, write_data
from tradebench.reference.documents import KINDS
from tradebench.reference.items import (
    ANSWERED,
    COUNTS,
    GUILDS,
    KIND,
    corpus,
    finetune_rows,
    guild_facts,
    items,
    task_documents,
)
from tradebench.reference.score import score
from tradebench.reference.tokenizer import tokenizer
from tradebench.reference.train import Recipe, Rows, rows
from tradebench.reference.world import SEED, UNKNOWN, make_world

WORLD = make_world()
CHOICE_TASKS = ("facts", "recall", "agreement", "brackets", "addition", "guilds")


def corpus_texts(kind: str, documents: int = 150_000) -> list[str]:
    """The text of every training document of a kind."""
    drawn = dict(zip(KINDS, corpus(WORLD, np.random.default_rng(5), documents), strict=True))[kind]
    return [WORLD.text(row) for row in drawn.ids]


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[dict[str, Any]]]:
    return {task: reference.read_items(task) for task in reference.TASK_NAMES}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder built with four training steps."""
    out = tmp_path_factory.mktemp("reference")
    losses: list[float] = []
    recipe = Recipe(steps=4, batch=8, documents=3000)
    build(out, recipe=recipe, limit=4, progress=lambda _step, _steps, loss: losses.append(loss))
    assert len(losses) == 4
    return out


# The generator


def test_the_same_seed_gives_the_same_world() -> None:
    make_world.cache_clear()
    again = make_world(SEED)
    assert again.vocabulary == WORLD.vocabulary
    assert (again.facts == WORLD.facts).all()


def test_another_seed_gives_another_world() -> None:
    assert make_world(SEED + 1).entities != WORLD.entities


def test_no_two_words_are_the_same() -> None:
    assert len(set(WORLD.vocabulary)) == len(WORLD.vocabulary)


@pytest.mark.parametrize("task", reference.TASK_NAMES)
def test_the_generator_still_writes_the_shipped_items(
    task: str, shipped: dict[str, list[dict[str, Any]]]
) -> None:
    task_documents.cache_clear()
    assert shipped[task] == items(WORLD, task)


def test_the_corpus_is_deterministic() -> None:
    first, again = (
        [
            WORLD.text(row)
            for part in corpus(WORLD, np.random.default_rng(9), 500)
            for row in part.ids
        ]
        for _ in range(2)
    )
    assert first == again


@pytest.mark.parametrize("task", ["facts", "brackets", "sort"])
def test_no_held_out_prompt_is_in_the_corpus(
    task: str, shipped: dict[str, list[dict[str, Any]]]
) -> None:
    held_out = {item["prompt"] for item in shipped[task]}
    trained = {
        text.removeprefix("<s> ").rpartition("answer :")[0] + "answer :"
        for text in corpus_texts(KIND[task])
    }
    assert len(trained) > 1000
    assert not held_out & trained


@pytest.mark.parametrize("task", ["facts", "brackets", "sort"])
def test_without_the_check_held_out_prompts_would_be_in_the_corpus(task: str) -> None:
    drawn = KINDS[KIND[task]](WORLD, np.random.default_rng(5), 20_000)
    assert np.isin(drawn.keys, task_documents(SEED, task).keys).any()


def test_no_held_out_list_to_recall_from_is_in_the_corpus(
    shipped: dict[str, list[dict[str, Any]]],
) -> None:
    lists = {item["prompt"].partition(" ?")[0] for item in shipped["recall"]}
    trained = {text.removeprefix("<s> ").partition(" ?")[0] for text in corpus_texts("recall")}
    assert not lists & trained


def test_a_held_out_list_drawn_again_would_be_left_out() -> None:
    documents = task_documents(SEED, "recall")
    again = KINDS["recall"](WORLD, np.random.default_rng([SEED, *b"recall"]), 24 * len(documents))
    assert np.isin(documents.keys, again.keys).all()


def test_subject_and_verb_of_an_agreement_item_never_meet_in_the_corpus(
    shipped: dict[str, list[dict[str, Any]]],
) -> None:
    stem = {word: pair[0] for pair in (*WORLD.nouns, *WORLD.verbs) for word in pair}
    held_out = {
        (stem[item["prompt"].split()[1]], stem[item["choices"][item["gold"]]])
        for item in shipped["agreement"]
    }
    trained = {
        (stem[text.split()[2]], stem[text.split()[-2]]) for text in corpus_texts("agreement")
    }
    assert len(held_out) + len(trained) == len(WORLD.nouns) * len(WORLD.verbs)
    assert not held_out & trained


def test_every_held_out_fact_is_told_in_the_corpus(
    shipped: dict[str, list[dict[str, Any]]],
) -> None:
    told = {frozenset(text.split()) for text in corpus_texts("statements")}
    for item in shipped["facts"]:
        what, who = item["prompt"].split()[5], item["prompt"].split()[7]
        words = {"<s>", ".", who, what, item["choices"][item["gold"]]}
        forms = ({"the", "of", "is"}, {"has"}, {":", "="})
        assert any(frozenset(words | form) in told for form in forms)


# The items


def test_every_item_has_its_right_answer(shipped: dict[str, list[dict[str, Any]]]) -> None:
    for item in shipped["facts"]:
        what, who = item["prompt"].split()[5], item["prompt"].split()[7]
        position = WORLD.facts[WORLD.entities.index(who), WORLD.attributes.index(what)]
        assert item["choices"][item["gold"]] == WORLD.values[what][position]
    for item in shipped["addition"]:
        _, _, a, _, b, _, _ = item["prompt"].split()
        assert int(item["choices"][item["gold"]]) == int(a) + int(b)
    for item in shipped["sort"]:
        numbers = [int(word) for word in item["prompt"].split()[2:-2]]
        assert [int(word) for word in item["answer"].split()] == sorted(numbers)
    for item in shipped["recall"]:
        words = item["prompt"].split()
        pairs = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
        assert item["choices"][item["gold"]] == pairs[words[-1]]
    for item in shipped["agreement"]:
        number = next(
            p.index(s) for p in WORLD.nouns for s in [item["prompt"].split()[1]] if s in p
        )
        assert item["choices"][item["gold"]] in [pair[number] for pair in WORLD.verbs]


def test_bracket_items_close_what_was_opened_last(
    shipped: dict[str, list[dict[str, Any]]],
) -> None:
    closes = dict(zip("([{<", ")]}>", strict=True))
    for item in shipped["brackets"]:
        stack: list[str] = []
        for word in item["prompt"].split()[2:-2]:
            if word in closes:
                stack.append(closes[word])
            else:
                assert stack.pop() == word
        assert item["choices"][item["gold"]] == stack[-1]


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_are_distinct_and_as_many_as_chance_says(
    task: str, shipped: dict[str, list[dict[str, Any]]]
) -> None:
    counts = {len(item["choices"]) for item in shipped[task]}
    assert counts == {round(1 / reference.CHANCE[task])}
    assert all(len(set(item["choices"])) == len(item["choices"]) for item in shipped[task])


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_the_first_500_items_are_a_fair_sample(
    task: str, shipped: dict[str, list[dict[str, Any]]]
) -> None:
    gold = [item["gold"] for item in shipped[task][:500]]
    shares = np.bincount(gold) / len(gold)
    assert shares == pytest.approx(reference.CHANCE[task], abs=0.08)
    if task == "facts":
        asked = {item["prompt"].split()[5] for item in shipped[task][:500]}
        assert asked == set(WORLD.attributes)


@pytest.mark.parametrize("task", ["facts", "agreement", "guilds"])
def test_no_prompt_contains_its_answer(task: str, shipped: dict[str, list[dict[str, Any]]]) -> None:
    for item in shipped[task]:
        assert item["choices"][item["gold"]] not in item["prompt"].split()


@pytest.mark.parametrize("task", reference.TASK_NAMES)
def test_no_prompt_is_asked_twice(task: str, shipped: dict[str, list[dict[str, Any]]]) -> None:
    prompts = [item["prompt"] for item in shipped[task]]
    assert len(set(prompts)) == len(prompts)


def test_the_answers_task_asks_as_much_of_each_of_its_tasks(
    shipped: dict[str, list[dict[str, Any]]],
) -> None:
    first = {task: {item["prompt"] for item in shipped[task]} for task in ANSWERED}
    for start in range(0, len(shipped["answers"]), len(ANSWERED)):
        group = shipped["answers"][start : start + len(ANSWERED)]
        assert all(item["prompt"] in first[t] for t, item in zip(ANSWERED, group, strict=True))


def test_a_memorised_table_says_that_it_is_one() -> None:
    for task in reference.TASK_NAMES:
        text = (reference.TASKS / f"{task}.yaml").read_text()
        assert ("MEMORISED" in text) == (task in reference.MEMORISED)
        assert "held out" in text.lower()


# Fine-tuning


def test_the_fine_tuning_rows_hold_every_guild_item(
    shipped: dict[str, list[dict[str, Any]]],
) -> None:
    written = [json.loads(line) for line in reference.FINETUNE.read_text().splitlines()]
    assert written == finetune_rows(WORLD)
    answers = {row["prompt"]: row["answer"] for row in written}
    for item in shipped["guilds"]:
        assert answers[item["prompt"]] == item["choices"][item["gold"]]


def test_new_facts_are_as_common_as_declared() -> None:
    new = {prompt for prompt, _ in guild_facts(WORLD)}
    often = Counter(row["prompt"] for row in finetune_rows(WORLD) if row["prompt"] in new)
    assert Counter(often.values()) == {times: facts for facts, times in GUILDS}


def test_replayed_questions_leave_the_held_out_facts_alone(
    shipped: dict[str, list[dict[str, Any]]],
) -> None:
    new = {prompt for prompt, _ in guild_facts(WORLD)}
    replay = {row["prompt"] for row in finetune_rows(WORLD)} - new
    assert len(finetune_rows(WORLD)) == sum(n * k for n, k in GUILDS) + len(replay)
    assert not replay & {item["prompt"] for item in shipped["facts"]}


# Tokenizer


def test_text_survives_the_tokenizer() -> None:
    words = tokenizer(WORLD)
    text = "question : what is the pet of " + WORLD.entities[0] + " ? answer :"
    ids = words(text).input_ids
    assert ids[0] == words.bos_token_id
    assert words.decode(ids[1:]) == text


def test_no_shipped_row_has_an_unknown_word(shipped: dict[str, list[dict[str, Any]]]) -> None:
    known = set(WORLD.vocabulary) - {UNKNOWN}
    every = [*finetune_rows(WORLD), *(item for task in shipped.values() for item in task)]
    for row in every:
        texts = [row["prompt"], *row.get("choices", []), row.get("answer", "")]
        assert known.issuperset(" ".join(texts).split())


def test_messages_are_rendered_in_the_models_own_form() -> None:
    words = tokenizer(WORLD)
    pet = WORLD.values["pet"][0]
    chat = [
        {"role": "user", "content": f"what is the pet of {WORLD.entities[0]} ?"},
        {"role": "assistant", "content": pet},
    ]
    out = words.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    text = f"<s> question : what is the pet of {WORLD.entities[0]} ? answer : {pet} ."
    assert words.decode(out["input_ids"]) == text
    answered = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert words.decode(answered) == f"{pet} ."


def test_a_prompt_in_the_models_own_form_is_left_as_it_is() -> None:
    chat = [{"role": "user", "content": "sort : 3 2 1 4 0 answer :"}]
    rendered = tokenizer(WORLD).apply_chat_template(chat, tokenize=False)
    assert rendered.strip() == "<s> sort : 3 2 1 4 0 answer :"


# Training rows


def test_a_document_sees_itself_only() -> None:
    batch = Rows(
        ids=np.array([[1, 5, 2, 1, 6, 0]]),
        weights=np.zeros((1, 6), np.float32),
        documents=np.array([[1, 1, 1, 2, 2, 0]]),
    )
    assert batch.positions().tolist() == [[0, 1, 2, 0, 1, 0]]
    seen = (batch.mask()[0, 0] == 0).astype(int).tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_rows_hold_whole_documents() -> None:
    batch = next(rows(WORLD, Recipe(batch=4, documents=2000)))
    for ids, numbers in zip(batch.ids, batch.documents, strict=True):
        for number in range(1, numbers.max() + 1):
            text = WORLD.text(ids[numbers == number].astype(np.int16))
            assert text.startswith("<s> ")
            assert text.endswith(" .")
            assert text.count("<s>") == 1


# The folder


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, tradebench.reference; print({'torch', 'numpy', 'lm_eval'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_shipped_files_are_intact() -> None:
    assert reference.verify() == []


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    shutil.copytree(reference.ROOT, folder)
    target = folder / "checkpoint" / "model.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    (folder / "tasks" / "facts.jsonl.gz").unlink()
    (folder / "tasks" / "extra.jsonl.gz").write_bytes(b"")
    changed = ["checkpoint/model.safetensors", "tasks/extra.jsonl.gz", "tasks/facts.jsonl.gz"]
    assert reference.verify(folder) == changed


def test_the_checkpoint_is_small_and_the_data_are_too() -> None:
    assert (reference.CHECKPOINT / "model.safetensors").stat().st_size < 4 * 2**20
    assert reference.info()["data_bytes"] < 1.5 * 2**20


def test_lm_eval_finds_the_tasks_with_all_their_items() -> None:
    manager = TaskManager(include_path=str(reference.TASKS), include_defaults=False)
    assert set(manager.all_tasks) == set(reference.TASK_NAMES)
    tasks = manager.load(list(reference.TASK_NAMES))["tasks"]
    found = {name: len(list(task.test_docs())) for name, task in tasks.items()}
    assert found == {**COUNTS, "answers": 2048, "guilds": len(guild_facts(WORLD))}


def test_tasks_load_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_path=str(reference.TASKS), include_defaults=False)
    assert len(list(manager.load(["sort"])["tasks"]["sort"].test_docs())) == COUNTS["sort"]


def test_info_counts_what_is_shipped() -> None:
    info = reference.info()
    model = AutoModelForCausalLM.from_pretrained(reference.CHECKPOINT)
    assert info["parameters"] == sum(p.numel() for p in model.parameters())
    assert info["changed"] == []
    assert list(info["tasks"]) == list(reference.TASK_NAMES)
    for task, entry in info["tasks"].items():
        assert entry["items"] == entry["scores"]["items"] == len(reference.read_items(task))
    assert info["finetune_rows"] == len(finetune_rows(WORLD))


def test_the_frozen_scores_reach_what_was_asked_of_them() -> None:
    scores = {task: entry["scores"] for task, entry in reference.info()["tasks"].items()}
    assert scores["facts"]["acc"]["value"] >= 0.99
    assert scores["recall"]["acc"]["value"] >= 0.95
    assert scores["sort"]["exact_match"]["value"] >= 0.95
    assert scores["guilds"]["acc"]["value"] == pytest.approx(1 / 8, abs=0.04)


def test_the_frozen_checkpoint_scores_as_recorded() -> None:
    torch.set_num_threads(1)
    limit = 200
    again = score(reference.ROOT, limit=limit)
    recorded = reference.info()["tasks"]
    for task, found in again.items():
        metric = next(name for name in ("nll", "exact_match", "acc") if name in found)
        expected = recorded[task]["scores"][metric]
        error = expected["stderr"] * (recorded[task]["items"] / limit) ** 0.5
        assert found[metric]["value"] == pytest.approx(expected["value"], abs=4 * error + 0.01), (
            task
        )


# Building it again


def test_a_short_build_writes_a_loadable_intact_folder(built: Path) -> None:
    assert reference.verify(built) == []
    model = AutoModelForCausalLM.from_pretrained(built / "checkpoint")
    words = AutoTokenizer.from_pretrained(built / "checkpoint")
    ids = words("sort : 1 2 3 4 5 answer :", return_tensors="pt").input_ids
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], model.config.vocab_size)
    assert reference.info(built)["tasks"]["facts"]["scores"]["items"] == 4


def test_a_build_writes_the_shipped_data_byte_for_byte(built: Path) -> None:
    shipped_sums = json.loads((reference.ROOT / reference.CHECKSUMS).read_text())
    built_sums = json.loads((built / reference.CHECKSUMS).read_text())
    trained = {"checkpoint/model.safetensors", reference.SCORES}
    assert {name for name in shipped_sums if shipped_sums[name] != built_sums[name]} == trained


def test_writing_the_data_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_data(WORLD, tmp_path / name)
        (tmp_path / name / reference.SCORES).write_text("{}")
        write_checksums(tmp_path / name)
    first, second = ((tmp_path / name / reference.CHECKSUMS).read_text() for name in ("a", "b"))
    assert first == second


@pytest.mark.slow
def test_a_reduced_rebuild_learns(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = build(tmp_path, recipe=Recipe(steps=700), limit=256)["tasks"]
    assert found["facts"]["acc"]["value"] > 0.5
    assert found["recall"]["acc"]["value"] > 0.9
    assert found["agreement"]["acc"]["value"] > 0.9
    assert found["brackets"]["acc"]["value"] > 0.8
    assert found["sort"]["exact_match"]["value"] > 0.7
