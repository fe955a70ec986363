"""What the harness costs: CPU-seconds of a trial against a plain script that does the same steps.

Both run whole, as processes, in the same test: only their ratio means anything on another machine.
"""

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

TRIALS = 4
STEPS = 40
SUITE = f"""\
model: reference
budget: {{steps: {STEPS}, warmup: 5, batch: 16, sequence: 32, learning_rate: 1e-3}}
evaluate: {{tasks: [facts], limit: 200, batch_size: 64}}
grid: {{adapters: {{method: lora, rank: {list(range(1, TRIALS + 1))}}}}}
"""
# What someone writes who has no harness: one point, no categories, no isolation, no report.
PLAIN = f"""\
import json, statistics, sys, time
import lm_eval, torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from tradebench import reference

torch.set_num_threads(1)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(reference.CHECKPOINT, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(reference.CHECKPOINT)
tasks = TaskManager(include_path=str(reference.TASKS), include_defaults=False).load(["facts"])

def score(model):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64, softmax_dtype="float32")
    found = lm_eval.evaluate(lm=lm, task_dict=tasks, limit=200, bootstrap_iters=0)
    return found["results"]["facts"]["acc,none"]

before = score(model)
model = get_peft_model(
    model,
    LoraConfig(
        r=int(sys.argv[1]), lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
    ),
)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
rows = [json.loads(line) for line in reference.FINETUNE.read_text().splitlines()]
tokenizer.padding_side = "right"
model.train()
times = []
for step in range({STEPS}):
    start = time.perf_counter()
    batch = [rows[(16 * step + k) % len(rows)] for k in range(16)]
    texts = [f"{{row['prompt']}} {{row['answer']}} ." for row in batch]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - start)
print(before, score(model), statistics.median(times))
"""


def cpu_seconds(commands: Sequence[Sequence[str]], folder: Path) -> float:
    """CPU time of these commands and everything that they start, one after the other."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_trial_against_a_plain_script(
    benchmark: BenchmarkFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cost.yaml").write_text(SUITE)
    (tmp_path / "plain.py").write_text(PLAIN)
    plain = [[sys.executable, "plain.py", str(rank)] for rank in range(1, TRIALS + 1)]
    harness = [[sys.executable, "-m", "tradebench", "run", "cost.yaml"]]

    bare = cpu_seconds(plain, tmp_path) / TRIALS
    timed = benchmark.pedantic(cpu_seconds, (harness, tmp_path), rounds=1)  # type: ignore[no-untyped-call]
    ours = timed / TRIALS

    benchmark.extra_info.update(plain_cpu_seconds=bare, harness_cpu_seconds=ours, ratio=ours / bare)
    with capsys.disabled():
        sys.stdout.write(
            f"\nCPU-seconds per point over {TRIALS} points: plain script {bare:.2f}, "
            f"tradebench {ours:.2f} with report, ratio {ours / bare:.2f}\n"
        )
