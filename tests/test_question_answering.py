"""The question-answering study: known answers, honest splits, and nothing of a test label in what trains."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "hotpotqa" / "ircot_dev_500.jsonl.gz"
sys.path.insert(0, str(ROOT / "scripts"))

import qa_metrics  # noqa: E402
import qa_prompts  # noqa: E402
import qa_questions  # noqa: E402
import qa_rationales  # noqa: E402
import qa_report  # noqa: E402
import qa_selection  # noqa: E402
import qa_stages  # noqa: E402
import qa_tuning  # noqa: E402

from pulse_hf.artifacts import settings_of  # noqa: E402
from pulse_hf.models.embedded import NANO_ID, resolve_model  # noqa: E402
from pulse_hf.models.text_encoder import encode_texts  # noqa: E402
from pulse_hf.reasoning.chat_tokens import ChatTokens  # noqa: E402
from pulse_hf.reasoning.generator import ScriptedGenerator  # noqa: E402

NEEDS_DATA = pytest.mark.skipif(
    not DATA.exists(), reason=f"{DATA} is not there; the study's questions are no part of the project"
)


def question(number: int, *, answer: str = "", supporting: tuple[int, ...] = (1, 3)) -> qa_questions.Question:
    """Five short paragraphs; the second and fourth are needed."""
    paragraphs = tuple(
        qa_questions.Paragraph(
            f"Page {number}-{place}", (f"It is plain {place}.", f"Fact {number * 7 + place} is told.")
        )
        for place in range(5)
    )
    return qa_questions.Question(
        f"q{number}",
        f"Which fact is told of page {number}-3?",
        paragraphs,
        answer or f"fact {number}",
        tuple(place in supporting for place in range(5)),
    )


@pytest.fixture(scope="module")
def cut() -> qa_prompts.Cutter:
    from transformers import AutoTokenizer

    return qa_prompts.Cutter(ChatTokens(AutoTokenizer.from_pretrained(resolve_model(NANO_ID)[0])))


@pytest.mark.parametrize(
    ("said", "right", "em", "f1"),
    [
        ("The Chief of Protocol.", "Chief of Protocol", 1, 1),
        ("chief", "Chief of Protocol", 0, 2 * 1 * (1 / 3) / (1 + 1 / 3)),
        ("Protocol protocol", "protocol", 0, 2 / 3),
        ("yes", "yes", 1, 1),
        ("yes", "yes it is", 0, 0),
        ("it is no", "no", 0, 0),
        ("", "anything", 0, 0),
        ("1,969", "1969", 1, 1),
    ],
)
def test_answers_of_known_worth(said, right, em, f1):
    assert qa_metrics.exact_match(said, right) == em
    assert qa_metrics.f1(said, right) == pytest.approx(f1)


def test_rankings_by_hand():
    supporting = [False, True, False, True]
    quality = qa_metrics.ranking_quality(np.array([4.0, 3, 2, 1]), supporting, np.array([5.0, 6, 1]), [0, 3, 1])
    assert quality == pytest.approx((1.0, 0.5, 0.0, (1 / 2 + 1 / 4) / 2))
    best = qa_metrics.ranking_quality(np.array([0.0, 3, 0, 2]), supporting, np.array([1.0, 0]), [0, 1])
    assert best == pytest.approx((0.0, 1.0, 1.0, 0.75))
    # All alike among ten: 2 of 10 in the first two, both with chance 1 in 45, mean reciprocal rank H(10)/10.
    chance = qa_metrics.ranking_quality(np.zeros(10), [True] * 2 + [False] * 8, np.zeros(20), [*range(10)] * 2)
    assert chance == pytest.approx((0.2, 0.2, 1 / 45, sum(1 / rank for rank in range(1, 11)) / 10))
    # One certain, the other tied with two more for the second place.
    mixed = qa_metrics.ranking_quality(np.array([9.0, 1, 1, 1, 0]), [True, True, False, False, False], np.ones(1), [0])
    assert mixed[1:3] == pytest.approx(((1 + 1 / 3) / 2, 1 / 3))


def test_a_paragraph_is_worth_its_best_candidate_of_the_asked_kind():
    one = question(1)
    pool = [qa_rationales.Rationale(place, "quoted", "x") for place in range(5)]
    pool += [qa_rationales.Rationale(0, "written", "y"), qa_rationales.Rationale(3, "written", "z")]
    scores = {"s": {"q1": np.array([0.0, 5, 1, 2, 0, 9, 3])}}
    found = {
        kinds: qa_report.rank_table([one], {"q1": pool}, scores, set(kinds))["s"][0]
        for kinds in (("quoted", "written"), ("quoted",), ("written",))
    }
    assert found["quoted", "written"][:3] == pytest.approx((0, 0.5, 0))  # page 0 by what was written of it
    assert found["quoted",][:3] == pytest.approx((1, 1, 1))
    assert found["written",][:3] == pytest.approx((0, 0.5, 0))


def test_the_split_is_fixed_and_disjoint():
    questions = [question(number) for number in range(50)]
    train, test = qa_questions.split_questions(questions, 40, 15)
    again = qa_questions.split_questions(questions[::-1], 40, 15)
    assert ([one.question_id for one in train], [one.question_id for one in test]) == tuple(
        [one.question_id for one in part] for part in again
    )
    assert (len(train), len(test)) == (25, 15)
    assert not {one.question_id for one in train} & {one.question_id for one in test}
    with pytest.raises(ValueError, match="some for training"):
        qa_questions.split_questions(questions, 15, 15)


@NEEDS_DATA
def test_the_questions_of_the_file_and_their_split():
    questions, dropped = qa_questions.read_questions(str(DATA))
    assert (len(questions), dropped) == (500, 0)
    train, test = qa_questions.split_questions(questions, 500, 200)
    assert (len(train), len(test)) == (300, 200)
    report = ROOT / "hub_cards" / "reports" / "question-answering.json"
    if report.exists():
        from dataclasses import asdict

        from pulse_hf.artifacts import sha256_of_text

        told = json.loads(report.read_text())["protocol"]["data_sha256"]
        assert told == sha256_of_text(json.dumps(asdict(one), sort_keys=True) for one in [*train, *test])


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_the_hubs_schema_is_read(tmp_path, suffix, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from datasets import Dataset

    row = {
        "id": "5a7a",
        "question": " Who wrote it? ",
        "answer": "Ada",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": {"title": ["B", "C", "C"], "sent_id": [0, 0, 1]},
        "context": {"title": ["A", "B", "C"], "sentences": [["One.", " Two."], ["Three."], ["Four.", " Five."]]},
    }
    one_only = row | {"id": "5a7b", "supporting_facts": {"title": ["A"], "sent_id": [0]}}
    rows, path = Dataset.from_list([row, one_only]), tmp_path / f"hotpot.{suffix}"
    rows.to_parquet(str(path)) if suffix == "parquet" else rows.to_json(str(path))
    (found,), dropped = qa_questions.read_questions(str(path))
    assert dropped == 1
    assert (found.question_id, found.text, found.answer) == ("5a7a", "Who wrote it?", "Ada")
    assert found.supporting == (False, True, True)
    assert found.paragraphs[2] == qa_questions.Paragraph("C", ("Four.", "Five."))


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="hotpotqa/hotpot_qa"):
        qa_questions.read_questions(str(tmp_path / "none.parquet"))


def test_a_prompt_fits_and_cuts_are_counted(cut):
    one = question(1)
    whole = qa_prompts.tell(one, range(5), ("because",), "Answer.", cut, 400)
    tight = qa_prompts.tell(one, range(5), ("because",), "Answer.", cut, 100)
    assert whole.num_cut == 0 < tight.num_cut
    assert cut.prompt_length(tight.text) <= 100
    assert one.text in tight.text
    assert "because" in tight.text
    with pytest.raises(ValueError, match="max-length"):
        qa_prompts.tell(one, range(5), (), "Answer.", cut, 10)


def test_the_second_lookup_reads_on_from_the_first():
    asked = replace(
        question(1),
        text="Who directed the film Moonrise?",
        paragraphs=(
            qa_questions.Paragraph("Stone", ("A stone is hard.",)),
            qa_questions.Paragraph("Moonrise", ("A film directed by Ada Quill.",)),
            qa_questions.Paragraph("Quill", ("Ada Quill was born in Oslo.",)),
        ),
    )
    assert qa_prompts.act_places([asked])["q1"] == (1, 2)


def made(train, test, cut, folder):
    """All that trains, and all that test questions are shown, as bytes."""
    steps = qa_stages.Steps(folder, {})
    engine = ScriptedGenerator({}, default="Reason: It tells of page 3.")
    pools, _ = qa_stages.all_pools([*train, *test], engine, cut, steps, 1, 11)
    scores = {
        "bm25": qa_selection.by_bm25([*train, *test], pools),
        "random": qa_selection.by_chance([*train, *test], pools, seed=11),
    }
    settings = qa_tuning.Tuning(max_length=300)
    shown = qa_stages.all_prompts([*train, *test], pools, scores, engine, cut, steps, settings)
    rows = {name: qa_stages.tuning_rows(train, mine, cut, settings) for name, mine in shown.items()}
    pairs = [repr(pair) for pair in qa_selection.question_pairs(train, pools)]
    asked = {name: [mine[one.question_id].text for one in test] for name, mine in shown.items()}
    return json.dumps([rows, pairs]), json.dumps(asked)


def test_no_test_label_reaches_what_trains_or_is_asked(tmp_path, cut):
    train, test = [question(number) for number in range(6)], [question(number) for number in range(6, 10)]
    swapped = [replace(one, answer="zebra", supporting=one.supporting[::-1][1:] + (True,)) for one in test]
    assert all(one.supporting != other.supporting for one, other in zip(test, swapped, strict=True))
    plain = made(train, test, cut, tmp_path / "a")
    assert plain == made(train, swapped, cut, tmp_path / "b")
    # The same swap among training questions must show, or the comparison sees nothing.
    relabelled = [replace(one, answer="zebra", supporting=(True, False, False, False, True)) for one in train]
    assert made(relabelled, test, cut, tmp_path / "c")[0] != plain[0]


def test_loss_lies_on_the_answer_and_its_end_alone(cut):
    (row,) = qa_tuning.training_rows([("Where?", "in Oslo")], cut.chat, cut, 24)
    tokenizer = cut.chat.tokenizer
    learnt = [token for token in row["labels"] if token != qa_tuning.IGNORED]
    assert tokenizer.decode(learnt[:-1]) == "in Oslo"
    assert learnt[-1] == tokenizer.eos_token_id
    assert row["input_ids"][: -len(learnt)] == cut.chat.encode([({"role": "user", "content": "Where?"},)])[0]


def test_likelihood_is_the_models_own(cut):
    from transformers import AutoModelForCausalLM

    from pulse_hf.reasoning.transformers_engine import TransformersGenerator

    engine = TransformersGenerator.from_pretrained(NANO_ID, batch_size=4)
    one = question(1)
    texts = ["They want a quiet kettle.", "They want a long film of nothing, and the rest of it."]
    pools = {"q1": [qa_rationales.Rationale(0, "written", text) for text in texts]}
    scores = qa_selection.by_likelihood([one], pools, engine)["q1"]
    plain = AutoModelForCausalLM.from_pretrained(resolve_model(NANO_ID)[0], dtype=engine.model.dtype).eval()
    import torch

    prompt = cut.chat.encode([({"role": "user", "content": f"Question: {one.text}"},)])[0]
    for score, text in zip(scores, texts, strict=True):
        told = cut.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + told])).logits[0, len(prompt) - 1 : -1].float()
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(told)).item()
        assert score == pytest.approx(-expected, abs=0.05)


def test_tuning_changes_the_answers_in_the_way_it_is_told(cut):
    settings = qa_tuning.Tuning(epochs=12, batch_size=4, learning_rate=5e-3)
    rows = qa_tuning.training_rows([(f"Where is number {n}?", "Oslo") for n in range(8)], cut.chat, cut, 8)
    engine, loss = qa_tuning.tuned(rows, settings, seed=1)
    assert np.isfinite(loss)
    assert qa_tuning.answers(engine, {"a": "Where is number 9?"}, 8) == {"a": "Oslo"}


def test_a_finished_step_is_read_and_a_changed_one_made_anew(tmp_path):
    counted: list[int] = []

    def make():
        counted.append(1)
        return {"a": [1.5]}

    steps = qa_stages.Steps(tmp_path, {"seed": 1})
    assert steps("x/y", "s", make)[0] == steps("x/y", "s", make)[0] == {"a": [1.5]}
    steps("x/y", "other", make)
    qa_stages.Steps(tmp_path, {"seed": 2})("x/y", "other", make)
    assert len(counted) == 3


def test_paired_figures_name_their_baseline():
    table = {"a": np.array([[1.0], [1], [0]]), "b": np.zeros((3, 1))}
    (row,) = qa_report.comparisons(table, ["em"], ["b"], seed=0)
    assert (row["system"], row["baseline"], row["difference"]) == ("a", "b", pytest.approx(2 / 3, abs=1e-4))
    assert qa_report.answer_shown([question(1), replace(question(2), answer="yes")], {"q1": "a fact 1 here"}) == 1.0


def test_a_space_is_compared_with_what_its_own_fit_began_with(small_run):
    asked, stage = [question(1), question(2)], small_run / "thought_space"
    pools = {one.question_id: qa_rationales.quoted(one) for one in asked}
    start = qa_selection.by_start(stage, asked, pools)
    fitted = qa_selection.by_space(qa_selection.load_space(stage / "model"), asked, pools)
    settings = settings_of(stage)
    dim = settings["projection_dim"]
    for one in asked:  # the fit begins with the first coordinates of the encoder
        texts = [one.text, *(candidate.text for candidate in pools[one.question_id])]
        vectors = encode_texts(texts, settings["encoder"])[:, :dim]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert start[one.question_id] == pytest.approx(vectors[1:] @ vectors[0], abs=2e-3)
        assert np.abs(start[one.question_id] - fitted[one.question_id]).max() > 5e-3
