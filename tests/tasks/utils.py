"""What the tasks in this folder compute: of a text BLEU, by sacrebleu, and ROUGE."""
from __future__ import annotations

from rouge_score.rouge_scorer import RougeScorer

KINDS = ["rouge1", "rougeL"]


def process_results(doc: dict[str, str], results: list[str]) -> dict:
    scores = RougeScorer(KINDS).score(doc["end"], results[0])
    return {"bleu": (doc["end"], results[0])} | {k: scores[k].fmeasure for k in KINDS}
