"""Reads a task's items for lm-eval, from beside the YAML file whatever the working directory."""

import gzip
import json
from pathlib import Path

import datasets


def load(*, file: str, **_: object) -> datasets.DatasetDict:
    """The items of `<file>.jsonl.gz` as the test split; lm-eval passes its metadata along too."""
    text = gzip.decompress((Path(__file__).parent / f"{file}.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
