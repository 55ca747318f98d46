"""Named settings of a whole run; every value that is not a stage's default is here, with its source.

"paper" is Biswas et al. 2025 (arXiv 2510.08626); "ours" marks what the paper's text does not give.
"""

from __future__ import annotations

from pulse_hf.data.columns import Columns
from pulse_hf.data.prepare import PrepareSettings
from pulse_hf.data.world.shop import WorldSettings
from pulse_hf.reasoning.prompts import PromptBudget
from pulse_hf.reasoning.rationales import RationaleSettings
from pulse_hf.reasoning.thoughts import ThoughtSettings
from pulse_hf.retrieval.candidates import CandidateSettings
from pulse_hf.settings import RunSettings
from pulse_hf.training.scorer import RecommenderSettings
from pulse_hf.training.sequential import SequentialSettings
from pulse_hf.training.thought_space import ThoughtSpaceSettings

PHI_4_MINI = "microsoft/Phi-4-mini-instruct"  # paper §5.2: Phi-4, 4B
DISTILBERT = "distilbert/distilbert-base-uncased"  # paper §4.1


def demo() -> RunSettings:
    """The embedded shop and pulse-nano: everything small enough for minutes on 2 CPU cores (all sizes ours)."""
    budget = PromptBudget(max_events=5, review_words=24, neighbour_items=3, score_events=3)
    return RunSettings(
        seed=7,
        world=WorldSettings(),
        prepare=PrepareSettings(
            format="table",
            reviews="",  # the generated shop
            columns=Columns(rating="rating", review="review"),
            min_user_events=0,  # the shop has no thin users or items to drop
            min_item_events=0,
        ),
        sequential=SequentialSettings(dim=32, training_decisions_per_user=1),
        candidates=CandidateSettings(
            training_decisions_per_user=99,  # all of them: every training choice gets a rationale, and a vote
            max_test_users=1500,  # everybody: what is to be told from fusion is about 3 points of HR@1
            max_validation_users=200,
        ),
        rationales=RationaleSettings(max_new_tokens=48, budget=budget),
        thought_space=ThoughtSpaceSettings(
            trained_layers=0,
            projection_dim=64,
            temperature=0.2,
            num_negatives=None,
            symmetric=True,
            epochs=20,
            patience=5,
            batch_size=256,
            projection_learning_rate=2e-3,
            training_pairs_per_user=2,
            max_validation_pairs=150,
            max_events=10,  # with 5, cut at 112 tokens, 45 % of all behaviours lost their ends
            review_words=24,
            max_history_tokens=256,
            max_rationale_tokens=48,
        ),
        thoughts=ThoughtSettings(
            depth=1, max_new_tokens=56, training_decisions_per_user=1, max_training_users=250, budget=budget
        ),
        recommender=RecommenderSettings(
            score_events=3, lora_dropout=0.0, epochs=2, patience=2, learning_rate=2e-3, head_learning_rate=1e-2
        ),
    )


def small() -> RunSettings:
    """One small GPU or a patient CPU, on data of your own; other models by changing their names (sizes ours)."""
    return RunSettings(
        candidates=CandidateSettings(
            training_decisions_per_user=1, max_test_users=2000, max_validation_users=500, max_train_users=2000
        ),
        sequential=SequentialSettings(training_decisions_per_user=1),
        thoughts=ThoughtSettings(max_new_tokens=64),
        rationales=RationaleSettings(max_new_tokens=80),
        thought_space=ThoughtSpaceSettings(trained_layers=2, epochs=3),
    )


def paper() -> RunSettings:
    """The paper's setting as far as its text gives it."""
    return RunSettings(
        prepare=PrepareSettings(
            format="amazon-2018", reviews="", deduplicate=True, min_user_events=5, min_item_events=5
        ),  # paper §5.1
        sequential=SequentialSettings(training_decisions_per_user=1),  # SASRec: paper §3; sizes ours
        candidates=CandidateSettings(
            num_negatives=9,  # paper §5.1
            sampling="uniform",  # paper §5.1
            training_decisions_per_user=1,  # ours
        ),
        rationales=RationaleSettings(
            model=PHI_4_MINI, max_new_tokens=160, batch_size=16
        ),  # model: paper §4.1; rest ours
        thought_space=ThoughtSpaceSettings(
            encoder=DISTILBERT,  # paper §4.1
            shared_towers=False,  # paper §4.1: two encoders
            trained_layers=None,  # paper §4.1: both fine-tuned
            behaviour="paper",  # paper §4.1: history + target, while training
            num_negatives=10,  # paper §4.1
            warmup_ratio=0.1,  # paper §5.3
            encoder_learning_rate=2e-5,  # ours: the number is lost in the paper's text
            temperature=0.07,  # ours: likewise
        ),
        thoughts=ThoughtSettings(
            model=PHI_4_MINI, depth=2, width=2, max_new_tokens=160, batch_size=16
        ),  # depth: paper §4.2; width ours
        recommender=RecommenderSettings(
            base_model=PHI_4_MINI,  # paper §4.2
            lora_rank=16,  # ours: the number is lost in the paper's text
            lora_alpha=32,  # ours: likewise
            lora_dropout=0.05,  # paper §5.3
            target_modules=None,  # ours: all of the decoder's linear layers; the paper's are lost
            learning_rate=2e-4,  # ours: the number is lost
            max_length=512,  # paper §5.3
            batch_size=4,  # ours: likewise
            eval_batch_size=4,  # ours: no more than a step has room for
            gradient_checkpointing=True,  # ours: fits 24 GB
            head_tokens=None,
            likelihood_scale=0.0,  # the paper's logit is that of the last hidden state alone
            systems=("pulse", "slm+sft"),
            shared_temperature=None,  # the paper has no such votes, so pulse is text-only
        ),
    )


def preset_named(name: str) -> RunSettings:
    """The preset of that name.

    Raises:
        ValueError: No preset has that name.
    """
    presets = {"demo": demo, "small": small, "paper": paper}
    if name not in presets:
        raise ValueError(f"no preset {name!r}; there are {', '.join(presets)}")
    return presets[name]()
