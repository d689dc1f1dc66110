"""Our metrics as modules of `evaluate`, offline: `evaluate.load(hf_ravlm.evaluation.METRIC_SCRIPT, name)`.

`evaluate` copies this file into its cache and takes the one class that it finds in it, so all imports are absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hf_ravlm import metrics
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation.questions import Question
from hf_ravlm.evaluation.scoring import ANSWER_METRICS, ranking_figures, score_answers


NAMES = (*ANSWER_METRICS, "pseudo_recall", "retrieval")
_TEXT = datasets.Value("string")
_TEXTS = datasets.Sequence(_TEXT)


class RavlmMetric(evaluate.Metric):
    """One of `NAMES`, chosen as `config_name`.

    | name | predictions | references | further arguments of `compute` |
    |---|---|---|---|
    | `exact_match`, `token_f1`, `bleu_4`, `rouge_l`, `cider_d` | texts | lists of accepted texts | |
    | `vqa_accuracy` | texts | lists of what each person said | |
    | `anls` | texts | lists of accepted texts | |
    | these with `_unicode`; `bleu_4`, `rouge_l`, `cider_d` with `_zh`, `_th` | as above, in any script | as above | |
    | `infoseek`, `encyclopedic_vqa` | texts | lists of texts; a range as two numbers | `kinds`: types of questions |
    | `retrieval` | lists of ids, best first | lists of wanted ids | `ks=(1, 5, 10)` |
    | `pseudo_recall` | lists of texts of passages | lists of answers | `ks=(1, 5, 10)`, `match="substring"` |

    Example:

    >>> metric = RavlmMetric("vqa_accuracy")
    >>> metric.compute(predictions=["Grey."], references=[["grey"] * 3 + ["blue"] * 7])
    {'vqa_accuracy': 0.9}
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in NAMES:
            raise InvalidInputError(
                f"The metric {self.config_name!r} is not known. Choose of {', '.join(NAMES)}: "
                'evaluate.load(METRIC_SCRIPT, "exact_match").'
            )
        columns = {"predictions": _TEXT if self.config_name in ANSWER_METRICS else _TEXTS, "references": _TEXTS}
        if self.config_name in ("infoseek", "encyclopedic_vqa"):
            columns["kinds"] = _TEXT
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="See the functions of hf_ravlm.metrics for the definitions and their sources.",
            inputs_description="predictions and references, see the table",
            features=datasets.Features(columns),
        )

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        kinds: Sequence[str] = (),
        ks: Sequence[int] = (1, 5, 10),
        match: Any = "substring",
    ) -> dict[str, float]:
        """Scores complete rows; `evaluate` lets empty ones through, which a metric would take for wrong answers.

        Raises:
            InvalidInputError: There are no rows, a value in them is missing, or what the metric raises.
        """
        if not len(predictions):
            raise InvalidInputError("There are no predictions to score.")
        for name, rows in (("predictions", predictions), ("references", references)):
            if missing := [n for n, row in enumerate(rows) if row is None or (isinstance(row, list) and None in row)]:
                raise InvalidInputError(
                    f"{len(missing)} of {len(rows)} {name} are missing or hold a None, first that of row "
                    f"{missing[0]}: leave these rows out of both lists, or give an empty text, which counts as wrong."
                )
        if self.config_name == "retrieval":
            ranked = [list(dict.fromkeys(ids)) for ids in predictions]  # an id counts where it stands first
            gold = [set(ids) for ids in references]
            relevant = metrics.relevance_from_ids(ranked, gold)
            figures = ranking_figures(relevant, [len(ids) for ids in gold], ks)
            figures |= {f"precision@{k}": metrics.precision_at_k(relevant, k) for k in ks}
            found = {name: float(values.mean()) for name, values in figures.items()}
            return {**found, "mean_rank": metrics.mean_rank(relevant), "median_rank": metrics.median_rank(relevant)}
        if self.config_name == "pseudo_recall":  # does any of the first k passages hold an answer, and how many do?
            relevant = metrics.relevance_from_answers(predictions, references, match)
            recall = {f"pseudo_recall@{k}": float(metrics.hit_at_k(relevant, k).mean()) for k in ks}
            precision = {f"pseudo_precision@{k}": float(metrics.precision_at_k(relevant, k).mean()) for k in ks}
            return recall | precision
        asked = [
            Question(str(n), "", tuple(answers), kind=kinds[n] if kinds else "")
            for n, answers in enumerate(references)
        ]
        return {self.config_name: score_answers(self.config_name, list(predictions), asked).value}
