"""What the loopback hub serves: small repositories under the real ids, in the real layouts.

Questions are made up here, with the fields, types and files of the hub's copies in November 2026
(CMMLU: a loading script and a zip, Parquet on ``refs/convert/parquet`` alone). Models are tiny and
random.

Example::

    publish_models(hub.root, {"facebook/opt-1.3b": "opt"})
    publish_datasets(hub.root)
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features
from hub.questions import ANIMALS, PLACES, TEXT, Rows, pairs, piqa, strategyqa, tables
from transformers import PreTrainedTokenizerFast
from word_tokenizer import word_tokenizer

from streamline.evaluation.tasks.opencompass_prompts import TEMPLATES
from streamline.results.subjects import CMMLU_SUBJECTS, MMLU_SUBJECTS
from streamline.testing.models import tiny_model, tiny_tokenizer


def publish_models(root: Path, families: Mapping[str, str]) -> None:
    """Write a tiny model for each hub id.

    Args:
        root: The hub's folder.
        families: Hub id -> a family of :func:`streamline.testing.models.tiny_model`.
    """
    for seed, (name, family) in enumerate(families.items()):
        folder = root / "models" / name / "main"
        tiny_model(family, seed=seed).save_pretrained(folder, max_shard_size="200KB")
        tiny_tokenizer().save_pretrained(folder)
        (folder / "README.md").write_text("---\nlicense: other\n---\n", encoding="utf-8")


def paper_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of these texts and of the papers' prompts."""
    return word_tokenizer(_words(), 640)


def _words() -> list[str]:
    """Such texts, and what stands around the questions."""
    about = [f"{one.hint}{item}" for one in TEMPLATES.values() for item in one.items]
    chinese = [f"{subject}：1加2等于多少？\n一百\n零" for subject in CMMLU_SUBJECTS]
    named = [f"In {subject}, where is the {ANIMALS[0]}?" for subject in MMLU_SUBJECTS]
    return [_story(0, 2_000), *about, *chinese, *CMMLU_SUBJECTS.values(), *named]


def publish_datasets(root: Path) -> None:
    """Write every data set that tasks and texts are read from."""
    folder = root / "datasets"
    for name, configs in (*tables().items(), *_texts().items()):
        _parquet(folder / name / "main", configs)
    _bare_piqa(folder / "baber" / "piqa" / "main")
    _cmmlu(folder / "haonan-li" / "cmmlu")
    _json(folder / "tasksource" / "strategy-qa" / "main" / "strategyQA_train.json", strategyqa())
    _json(folder / "yahma" / "alpaca-cleaned" / "main" / "alpaca_data_cleaned.json", _alpaca())
    _c4(folder / "allenai" / "c4" / "main")


def _texts() -> dict[str, dict[str, dict[str, Dataset]]]:
    """Repository -> configuration -> split -> rows of running text."""
    return {
        "Salesforce/wikitext": {"wikitext-2-raw-v1": _wikitext()},
        "DKYoon/SlimPajama-6B": {"data": _slimpajama()},
    }


def _parquet(folder: Path, configs: Mapping[str, Mapping[str, Dataset]]) -> None:
    """CONFIG/SPLIT-00000-of-00001.parquet, and a card that names them."""
    card: list[dict[str, Any]] = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(str(path))
            files.append({"split": split, "path": f"{config}/{split}-*"})
        card.append({"config_name": config, "data_files": files})
    text = yaml.safe_dump({"configs": card}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{text}---\n", encoding="utf-8")


def _bare_piqa(folder: Path) -> None:
    """PIQA's copy has no card, and its files at the top."""
    folder.mkdir(parents=True)
    for split, rows in piqa().items():
        rows.to_parquet(str(folder / f"piqa_{split}.parquet"))


def _alpaca() -> Rows:
    return [
        {
            "instruction": f"Say where the {a} of number {i} lives.",
            "input": "" if i % 2 else "Keep it short.",
            "output": f"It lives in the {p}.",
        }
        for i, a, p in pairs(400)
    ]


def _story(seed: int, n_words: int) -> str:
    """Running text of so many words, the same for a seed."""
    draw = random.Random(seed)
    words = (*ANIMALS, *PLACES, "the", "a", "runs", "sees", "to", "and", "from")
    return " ".join(draw.choice(words) for _ in range(n_words)) + "."


def _wikitext() -> dict[str, Dataset]:
    found = {}
    for number, split in enumerate(("train", "validation", "test")):
        lines = []
        for article in range(120):
            title = f" = {ANIMALS[article % 10].title()} {article} = \n"
            lines += ["", title, "", f" {_story(1000 * number + article, 300)} \n"]
        rows = [{"text": line} for line in lines]
        found[split] = Dataset.from_list(rows, features=Features({"text": TEXT}))
    return found


def _slimpajama() -> dict[str, Dataset]:
    fractions = {
        "RedPajamaCommonCrawl": 0.3,
        "RedPajamaC4": 0.4,
        "RedPajamaGithub": 0.06,
        "RedPajamaBook": 0.06,
        "RedPajamaArXiv": 0.06,
        "RedPajamaWikipedia": 0.06,
        "RedPajamaStackExchange": 0.06,
    }
    features = Features({"text": TEXT, "meta": {"redpajama_set_name": TEXT}})
    found = {}
    for number, (split, n) in enumerate((("train", 600), ("validation", 100), ("test", 100))):
        draw = random.Random(number)
        domains = draw.choices(list(fractions), list(fractions.values()), k=n)
        rows = [
            {
                "text": _story(10_000 * (number + 1) + i, 2_000 if "Book" in domain else 120),
                "meta": {"redpajama_set_name": domain},
            }
            for i, domain in enumerate(domains)
        ]
        found[split] = Dataset.from_list(rows, features=features)
    return found


def _c4(folder: Path) -> None:
    """Gzipped JSON lines below ``en``, and a card that names them."""
    for number, split in enumerate(("train", "validation")):
        path = (
            folder
            / "en"
            / f"c4-{split}.00000-of-{'01024' if split == 'train' else '00008'}.json.gz"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as stream:
            for i in range(1_200):
                row = {"text": _story(100_000 * (number + 1) + i, 60), "url": f"https://x.org/{i}"}
                stream.write(json.dumps(row | {"timestamp": "2019-04-25T12:57:54Z"}) + "\n")
    files = [
        {"split": split, "path": f"en/c4-{split}.*.json.gz"} for split in ("train", "validation")
    ]
    card = yaml.safe_dump({"configs": [{"config_name": "en", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")


def _cmmlu(folder: Path) -> None:
    """A script and a zip on ``main``, which today's datasets does not run; Parquet beside it."""
    main, converted = folder / "main", folder / "refs--convert--parquet"
    main.mkdir(parents=True)
    (main / "cmmlu.py").write_text("raise SystemExit('scripts do not run')\n", encoding="utf-8")
    (main / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    names = ("Question", "A", "B", "C", "D", "Answer")
    with zipfile.ZipFile(main / "cmmlu_v1_0_1.zip", "w") as archive:
        for number, subject in enumerate(CMMLU_SUBJECTS):
            for split, n in (("dev", 5), ("test", 6)):
                rows = [
                    {
                        "Question": f"{subject}：{i}加{number}等于多少？",
                        "A": str(i + number),
                        "B": str(i),
                        "C": "一百",
                        "D": "零",
                        "Answer": "ABCD"[i % 4],
                    }
                    for i in range(n)
                ]
                text = io.StringIO()
                writer = csv.DictWriter(text, ("", *names))
                writer.writeheader()
                writer.writerows({"": i, **row} for i, row in enumerate(rows))
                archive.writestr(f"{split}/{subject}.csv", text.getvalue())
                path = converted / subject / split / "0000.parquet"
                path.parent.mkdir(parents=True)
                features = Features(dict.fromkeys(names, TEXT))
                Dataset.from_list(rows, features=features).to_parquet(str(path))


def _json(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
