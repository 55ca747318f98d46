"""A page for the metric: paste scores, see the figures."""

import json
from pathlib import Path

import evaluate
import gradio as gr

SOURCE = next(path for path in Path(__file__).parent.glob("*.py") if path.name != "app.py")
METRIC = evaluate.load(str(SOURCE))
MOST_CHARACTERS = 20_000


def compute(scores: str, targets: str) -> dict[str, float]:
    """HR@k, NDCG@k and MRR of some decisions.

    Args:
        scores: JSON, one list of scores per decision, for example [[0.2, 0.9, 0.1]].
        targets: JSON, the target's place in each list, for example [1].
    """
    if len(scores) + len(targets) > MOST_CHARACTERS:
        raise gr.Error(f"At most {MOST_CHARACTERS:,} characters.")
    try:
        return METRIC.compute(predictions=json.loads(scores), references=json.loads(targets))
    except Exception:  # whatever a stranger typed, the answer is a sentence
        raise gr.Error("Expected JSON: lists of numbers, and one place for each list.") from None


demo = gr.Interface(
    compute,
    [gr.Textbox("[[0.2, 0.9, 0.1], [0.5, 0.5, 0.5]]", label="Scores"), gr.Textbox("[1, 0]", label="Targets")],
    gr.JSON(label="Metrics"),
    title="Tie-aware ranking",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
