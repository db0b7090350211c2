"""The texts that OpenCompass 0.2.3 scores in PPL mode, one template a task.

A question becomes one whole text per option. Templates name fields in braces; they are filled
after the few-shot examples are in place, field after field, as OpenCompass does. Line breaks and
trailing spaces are part of the protocol.

Example::

    c3 = TEMPLATES["c3"]
    row = {"context": ["男：走吗?"], "question": "去哪?", "choice": ["家", "店"], "answer": "店"}
    c3.texts(row)       # four texts: missing options repeat the first
    c3.gold(row)        # 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamline.results.subjects import CMMLU_SUBJECTS

__all__ = ["TEMPLATES", "Template", "hellaswag_context", "mark_spans", "pad_choices"]

Row = Mapping[str, Any]
_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a row becomes texts.

    Attributes:
        labels: OpenCompass's labels, in its order.
        items: The text of each label, with ``{field}`` places; one for each label.
        fields: Row to the fields of the template, in OpenCompass's column order.
        gold: Row to the index of the right label.
        hint: Text before everything else, with ``{subject}`` if it names one.
        n_shots: Few-shot examples, the first so many of their split.
        between: Text between two examples.
        after: Text between the last example and the question.
        none: Text there if every example was dropped.
        shot_end: Text at the end of an example.
    """

    labels: tuple[str, ...]
    items: tuple[str, ...]
    fields: Callable[[Row], dict[str, str]]
    gold: Callable[[Row], int]
    hint: str = ""
    n_shots: int = 0
    between: str = ""
    after: str = ""
    none: str = ""
    shot_end: str = ""

    def text(
        self, row: Row, label: int, shots: Sequence[Row] = (), subject: str | None = None
    ) -> str:
        """The whole text of one option.

        Args:
            row: The question, with the field names of its hub copy.
            label: Index into ``labels``.
            shots: Few-shot examples in order; ``()`` for none.
            subject: Subject of the set, where it has subjects.
        """
        head = ""
        if self.n_shots:
            examples = [self._fill(self.items[self.gold(s)], s) + self.shot_end for s in shots]
            head = self.between.join(examples) + self.after if examples else self.none
        whole = self.hint + head + self.items[label]
        if subject is not None:
            named = CMMLU_SUBJECTS.get(subject, "") if "{学科}" in whole else subject
            whole = whole.replace("{学科}", named).replace("{subject}", named.replace("_", " "))
        return self._fill(whole, row)

    def texts(self, row: Row, shots: Sequence[Row] = (), subject: str | None = None) -> list[str]:
        """The whole text of every option, in label order."""
        return [self.text(row, label, shots, subject) for label in range(len(self.labels))]

    def _fill(self, text: str, row: Row) -> str:
        for name, value in self.fields(row).items():
            text = text.replace(f"{{{name}}}", value)
        return text


def hellaswag_context(row: Row) -> str:
    """HellaSwag's context as OpenCompass extracts it from lm-eval's cleaned query.

    The query is "activity: context"; what follows the last of at most two ": " is kept, so a
    context that has ": " itself loses what precedes it.
    """
    query = _clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return query.split(": ", 2)[-1]


def _clean(text: str) -> str:
    """Remove WikiHow's marks, as lm-eval's HellaSwag does."""
    import re

    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def mark_spans(row: Row) -> str:
    """Mark the noun ``* like this *`` and the pronoun ``# it #`` in a WSC text.

    Word positions are those of SuperGLUE. Where the two spans overlap, the noun's mark wins.
    """
    words = row["text"].split(" ")
    spans = []
    for number, mark in ((1, "*"), (2, "#")):
        text = row[f"span{number}_text"]
        start = int(row[f"span{number}_index"])
        spans.append((start, start + len(text.split(" ")), f"{mark} {text} {mark}"))
    out = []
    for index, word in enumerate(words):
        for start, stop, marked in spans:
            if start <= index < stop:
                if index == start:
                    out.append(marked)
                break
        else:
            out.append(word)
    return " ".join(out)


def pad_choices(choices: Sequence[str], n: int = 4) -> list[str]:
    """Repeat the first choice until there are ``n``."""
    return [*choices, *[choices[0]] * (n - len(choices))]


def _lettered(options: Sequence[str]) -> dict[str, str]:
    return dict(zip("ABCDE", options, strict=False))


def _same(*names: str) -> Callable[[Row], dict[str, str]]:
    return lambda row: {name: str(row[name]) for name in names}


def _c3_fields(row: Row) -> dict[str, str]:
    choices = pad_choices(row["choice"])
    return {"question": row["question"], "content": " ".join(row["context"])} | {
        f"choice{i}": choice for i, choice in enumerate(choices)
    }


def _chid_fields(row: Row) -> dict[str, str]:
    return {
        f"content{i}": row["content"].replace("#idiom#", candidate)
        for i, candidate in enumerate(row["candidates"])
    }


def _letter(name: str) -> Callable[[Row], int]:
    return lambda row: "ABCDE".index(row[name])


_MMLU_QUESTION = "{input}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer: "
_CMMLU_QUESTION = (
    "以下是关于{学科}的单项选择题，请直接给出正确答案的选项。\n"
    "题目：{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n答案是: "
)
_CMNLI_QUESTION = "语句一：“{sentence1}”\n语句二：“{sentence2}”\n请问这两句话是什么关系？\n"
_CMNLI_LABELS = ("contradiction", "entailment", "neutral")
_RACE_QUESTION = (
    "Read the article, and answer the question by replying A, B, C or D.\n\n"
    "Article:\n{article}\n\nQ: {question}\n\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nA: "
)
_WSC_QUESTION = (
    "Passage: {text}\nDoes the pronoun # {span2} # refer to * {span1} *?\nA. Yes\nB. No\nAnswer: \n"
)

_RACE = Template(
    labels=_LETTERS,
    items=tuple(_RACE_QUESTION + letter for letter in _LETTERS),
    fields=lambda row: (
        {"article": row["article"], "question": row["question"]} | _lettered(row["options"])
    ),
    gold=_letter("answer"),
)

TEMPLATES: dict[str, Template] = {
    "cmnli": Template(
        labels=_CMNLI_LABELS,
        items=tuple(_CMNLI_QUESTION + word for word in ("矛盾", "蕴含", "无关")),
        fields=_same("sentence1", "sentence2"),
        gold=lambda row: 2 - int(row["label"]),  # the hub says neutral, entailment, contradiction
    ),
    "hellaswag": Template(
        labels=("0", "1", "2", "3"),
        items=tuple(f"{{ctx}}\n{{{letter}}}" for letter in _LETTERS),
        fields=lambda row: (
            {"ctx": hellaswag_context(row)}
            | _lettered([_clean(ending) for ending in row["endings"]])
        ),
        gold=lambda row: int(row["label"]),
    ),
    "piqa": Template(
        labels=("0", "1"),
        items=tuple(
            f"The following makes sense: \nQ: {{goal}}\nA: {{{name}}}\n"
            for name in ("sol1", "sol2")
        ),
        fields=_same("goal", "sol1", "sol2"),
        gold=lambda row: int(row["label"]),
    ),
    "chid": Template(
        labels=tuple("0123456"),
        items=tuple(f"以下句子是否通顺？\n{{content{i}}}\n这个句子是通顺的。" for i in range(7)),
        fields=_chid_fields,
        gold=lambda row: int(row["answer"]),
    ),
    "wsc": Template(
        labels=("A", "B"),
        items=(_WSC_QUESTION + "A", _WSC_QUESTION + "B"),
        fields=lambda row: {
            "span1": row["span1_text"],
            "span2": row["span2_text"],
            "text": mark_spans(row),
        },
        gold=lambda row: 1 - int(row["label"]),
    ),
    "commonsense_qa": Template(
        labels=tuple("ABCDE"),
        items=tuple(f"Question: {{question}}\nAnswer: \n{{{letter}}}" for letter in "ABCDE"),
        fields=lambda row: {"question": row["question"]} | _lettered(row["choices"]["text"]),
        gold=lambda row: list(row["choices"]["label"]).index(row["answerKey"]),
        n_shots=8,
        between="\n\n\n",
        after="\n\n\n\n\n",
        none="\n\n",
    ),
    "boolq": Template(
        labels=("0", "1"),
        items=tuple(f"{{passage}}\nQuestion: {{question}}?\n{word}" for word in ("No", "Yes")),
        fields=_same("question", "passage"),
        gold=lambda row: int(row["label"]),
    ),
    "race_high": _RACE,
    "race_middle": _RACE,
    "c3": Template(
        labels=("0", "1", "2", "3"),
        items=tuple(
            f"文章：{{content}}\n问题：{{question}}\n答案：{{choice{i}}}" for i in range(4)
        ),
        fields=_c3_fields,
        gold=lambda row: list(row["choice"]).index(row["answer"]),
    ),
    "mmlu": Template(
        labels=_LETTERS,
        items=tuple(_MMLU_QUESTION + letter for letter in _LETTERS),
        fields=lambda row: {"input": row["question"]} | _lettered(row["choices"]),
        gold=lambda row: int(row["answer"]),
        hint="The following are multiple choice questions (with answers) about  {subject}.\n\n",
        n_shots=5,
        between="\n",
        after="\n",
        none="\n",
        shot_end="\n",
    ),
    "cmmlu": Template(
        labels=_LETTERS,
        items=tuple(_CMMLU_QUESTION + letter for letter in _LETTERS),
        fields=lambda row: {"question": row["Question"]} | {k: str(row[k]) for k in _LETTERS},
        gold=_letter("Answer"),
        n_shots=5,
        between="\n\n\n",
        after="\n\n\n\n\n",
        none="\n\n",
    ),
}
