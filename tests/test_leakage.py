"""The leak audit on a whole small run: it passes as it is, and fails on each leak planted by patching code."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pulse_hf import artifacts
from pulse_hf.data.sequences import load_sequences
from pulse_hf.evaluation import leakage
from pulse_hf.evaluation.evaluate import SYSTEMS, EvaluateSettings, evaluate
from pulse_hf.evaluation.finished_run import FinishedRun
from pulse_hf.evaluation.fusion.fusion import INGREDIENTS, REVIEWS
from pulse_hf.evaluation.leakage import audit
from pulse_hf.evaluation.protocol import Study
from pulse_hf.evaluation.stage_inputs import sha256_of_inputs, stage_texts
from pulse_hf.evaluation.stored_trees import wrong_agreements
from pulse_hf.evaluation.swapped_targets import CANARY, swap_targets
from pulse_hf.reasoning import prompts
from pulse_hf.reasoning import rationales as rationales_stage
from pulse_hf.reasoning import thoughts as thoughts_stage
from pulse_hf.reasoning.rationales import RationaleSettings, rationales
from pulse_hf.reasoning.thoughts import ThoughtSettings, thought_inputs, thoughts
from pulse_hf.retrieval import candidates as candidates_stage
from pulse_hf.retrieval import similar_users
from pulse_hf.retrieval.candidates import CandidateSettings, candidates, load_candidates
from pulse_hf.schema import Decision, Item, Sequence
from pulse_hf.stages import BASELINES
from pulse_hf.training import scorer as scorer_stage
from pulse_hf.training import sequential as sequential_stage
from pulse_hf.training.scorer import RecommenderSettings, recommender
from pulse_hf.training.sequential import SequentialSettings, sequential
from pulse_hf.training.thought_space import ThoughtSpaceSettings, train_thought_space

TRIBE = 14
CATALOGUE = [f"t{tribe}-{item}" for tribe in range(2) for item in range(TRIBE)]
LIKES = ("I like things that are soft and warm.", "I love tools that last for years.")
SEED = 3


def people(num_users=40):
    generator = np.random.default_rng(1)
    users = []
    for number in range(num_users):
        own = tuple(f"t{number % 2}-{item}" for item in generator.choice(TRIBE, 6, replace=False))
        times = tuple(sorted(generator.integers(0, 1000, 6).tolist()))
        users.append(Sequence(f"u{number}", own, times, (5.0,) * 6, (LIKES[number % 2],) * 6))
    return users


def tokenizer(*, closed):
    """Words of the little world; whatever else is read becomes one unknown word."""
    words = [*"I like things that are soft and warm love tools last for years Reason".split(), *CATALOGUE, "item"]
    vocabulary = {
        word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Fits:", "yes", "no", *words])
    }
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if closed:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
    )


def encoder(folder):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 128}
    BertModel(BertConfig(vocab_size=64, hidden_size=16, initializer_range=0.3, **sizes)).save_pretrained(folder)
    tokenizer(closed=True).save_pretrained(folder)
    return str(folder)


def language_model(folder):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=16, pad_token_id=0, eos_token_id=3, **sizes)
    ).save_pretrained(folder)
    tokenizer(closed=False).save_pretrained(folder)
    return str(folder)


def prepared(run):
    def make(work):
        rows = [Item(item_id, item_id, f"the item {item_id}") for item_id in CATALOGUE]
        artifacts.write_table(work / "sequences.parquet", "sequences", people())
        artifacts.write_table(work / "items.parquet", "items", rows)
        return {}

    artifacts.build(run / "sequences", artifacts.Fingerprint("prepare", {}, 0), make)


def anew(folder):
    """Equal settings would be skipped, although a test has patched the code."""
    shutil.rmtree(folder, ignore_errors=True)


def fitted(run):
    anew(run / "sequential")
    size = {"dim": 16, "epochs": 1, "max_length": 4, "num_neighbours": 4, "learning_rate": 1e-2}
    settings = SequentialSettings(encoder=str(run.parent / "encoder"), **size)
    sequential(run, settings, seed=SEED)


def drawn(run):
    anew(run / "candidates")
    candidates(run, CandidateSettings(num_negatives=4), seed=SEED)


def explained(run):
    anew(run / "rationales")
    rationales(run, RationaleSettings(engine="extractive"), seed=SEED)


def spaced(run):
    anew(run / "thought_space")
    size = {"epochs": 1, "trained_layers": 1, "precision": "float32"}
    settings = ThoughtSpaceSettings(encoder=str(run.parent / "encoder"), **size)
    train_thought_space(run, settings, seed=SEED)


def thought(run):
    anew(run / "thoughts")
    thoughts(run, ThoughtSettings(engine="extractive"), seed=SEED)


def tuned(run):
    anew(run / "recommender")
    size = {"epochs": 1, "lora_rank": 2, "bf16": False, "lora_dropout": 0.0, "training_negatives": 3}
    recommender(run, RecommenderSettings(base_model=str(run.parent / "base"), **size), seed=SEED)


@pytest.fixture(scope="module")
def collaborative(tmp_path_factory):
    """A run up to its candidates: sequences, SASRec models, neighbours, sets."""
    folder = tmp_path_factory.mktemp("collaborative")
    encoder(folder / "encoder")
    run = folder / "run"
    prepared(run)
    fitted(run)
    drawn(run)
    return run


@pytest.fixture(scope="module")
def whole(collaborative, tmp_path_factory):
    """A run with every stage, its texts extracted, its models tiny."""
    folder = tmp_path_factory.mktemp("whole") / "all"
    shutil.copytree(collaborative.parent, folder)
    language_model(folder / "base")
    for stage in (explained, spaced, thought, tuned):
        stage(folder / "run")
    return folder / "run"


@pytest.fixture
def copied(collaborative, tmp_path):
    """A run of its own for a test that plants something."""
    shutil.copytree(collaborative.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"


@pytest.fixture
def copied_whole(whole, tmp_path):
    """A whole run of its own."""
    shutil.copytree(whole.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def failed(report):
    return {check["name"] for check in report["checks"] if not check["passed"]}


def test_swapped_worlds_differ_in_the_stated_targets_only():
    users = people(20)
    for splits, changed in ((("test",), {5}), (("validation", "test"), {4, 5})):
        for before, after in zip(users, swap_targets(users, CATALOGUE, splits, 0), strict=True):
            differing = {place for place in range(6) if before.item_ids[place] != after.item_ids[place]}
            assert differing == changed
            assert {place for place in range(6) if CANARY in after.reviews[place]} == changed
            assert len(set(after.item_ids)) == 6
            assert before.timestamps == after.timestamps


def test_inputs_of_training_are_the_same_in_the_swapped_world(collaborative):
    sequences = load_sequences(collaborative)
    both = swap_targets(sequences, CATALOGUE, ("validation", "test"), 0)
    before, after = (sha256_of_inputs(stage_texts(FinishedRun(collaborative), world)) for world in (sequences, both))
    assert before == after


def test_what_cannot_be_examined_has_not_passed():
    def torn():
        return safetensors.torch.load(b"torn")

    found = leakage._check("a", torn)
    assert not found["passed"]
    assert found["detail"].startswith("could not be examined: SafetensorError")


def test_a_sound_collaborative_run_passes(collaborative):
    report = audit(collaborative)
    assert failed(report) == set(), report
    assert report["passed"]
    assert all(set(check) == {"name", "passed", "detail"} for check in report["checks"])


def test_a_sound_whole_run_passes_and_everything_was_looked_at(whole):
    report = audit(whole, users=3)
    assert failed(report) == set(), report
    details = {check["name"]: check["detail"] for check in report["checks"]}
    for name in ("sequential", "neighbours", "candidates", "rationales", "thought-space", "recommender"):
        assert name in details["recorded inputs are the rebuilt ones"]
    for split in ("train", "validation", "test"):
        assert f"thoughts/{split}" in details["recorded inputs are the rebuilt ones"]
        assert f"behaviour/{split}" in details["all inputs ignore test targets"]
    assert details["thoughts made again ignore their targets"] == "3 test users"
    assert details["chosen leaves and agreements are those of the trees"].startswith("160 leaves, 10 trees")


def test_sasrec_fitted_on_full_sequences_is_caught(copied, monkeypatch):
    with monkeypatch.context() as planted:
        full = [list(sequence.item_ids) for sequence in load_sequences(copied)]
        planted.setattr(sequential_stage, "training_sequences", lambda sequences: full)
        fitted(copied)
    found = failed(audit(copied))
    assert {"recorded inputs are the rebuilt ones", "fits saw training events only"} <= found


def test_sasrec_fitted_on_full_sequences_is_caught_although_the_record_is_clean(copied, monkeypatch):
    with monkeypatch.context() as planted:
        clean = sequential_stage.inputs_sha256(load_sequences(copied))
        full = [list(sequence.item_ids) for sequence in load_sequences(copied)]
        planted.setattr(sequential_stage, "training_sequences", lambda sequences: full)
        planted.setattr(sequential_stage, "inputs_sha256", lambda sequences: clean)
        fitted(copied)
    assert "fits saw training events only" in failed(audit(copied))


def test_training_events_that_hold_the_targets_are_caught_while_the_code_leaks(copied, monkeypatch):
    monkeypatch.setattr(Sequence, "training", lambda self: self)
    fitted(copied)
    found = failed(audit(copied))
    assert {"training inputs ignore validation and test targets", "fits saw training events only"} <= found


def test_a_target_among_a_neighbours_items_is_caught(copied, monkeypatch):
    honest = sequential_stage.Fits.neighbour_rows

    def leaking(self, model, wanted):
        rows = honest(self, model, wanted)
        targets = [self.sequences[one.user_id].item_ids[one.position] for one in wanted]
        return [{**row, "item_ids": [target, *row["item_ids"]]} for row, target in zip(rows, targets, strict=True)]

    with monkeypatch.context() as planted:
        planted.setattr(sequential_stage.Fits, "neighbour_rows", leaking)
        fitted(copied)
    assert failed(audit(copied)) == {"neighbours lend training items only"}


def test_neighbours_that_lend_their_test_targets_are_caught(copied, monkeypatch):
    monkeypatch.setattr(similar_users, "lendable", lambda sequences: {one.user_id: one for one in sequences})
    for module in ("stage_inputs", "lending"):
        monkeypatch.setattr(f"pulse_hf.evaluation.{module}.lendable", similar_users.lendable)
    fitted(copied)
    found = failed(audit(copied))
    assert {"training inputs ignore validation and test targets", "neighbours lend training items only"} <= found
    assert "all inputs ignore test targets" in found


def test_items_lent_after_the_decision_are_caught(copied, monkeypatch):
    honest = similar_users.lend_items

    def timeless(*given, **named):
        return honest(*given, **{**named, "before": None})

    monkeypatch.setattr(similar_users, "lend_items", timeless)
    monkeypatch.setattr("pulse_hf.evaluation.lending.lend_items", timeless)
    fitted(copied)
    assert failed(audit(copied)) == {"neighbours lend training items only"}


def test_similar_users_found_by_the_history_with_its_target_are_caught(copied, monkeypatch):
    def with_target(self, decision):
        return self._indices(self.sequences[decision.user_id].item_ids[: decision.position + 1])

    with monkeypatch.context() as planted:
        planted.setattr(sequential_stage.Fits, "_history", with_target)
        fitted(copied)
    assert failed(audit(copied)) == {"neighbours lend training items only"}


def test_training_negatives_that_avoid_later_targets_are_caught(copied, monkeypatch):
    monkeypatch.setattr(Sequence, "training", lambda self: self)
    drawn(copied)
    assert "training inputs ignore validation and test targets" in failed(audit(copied))


def rewritten(run, stage, path, change, table):
    """Change rows of an artefact and write a new manifest for it, as a careful cheat would."""
    rows = [change(row) for row in artifacts.read_table(run / path).to_pylist()]
    artifacts.write_table(run / path, table, rows)
    manifest = artifacts.read_manifest(run / stage)
    manifest["files"][path.removeprefix(f"{stage}/")] = artifacts.sha256_of_file(run / path)
    artifacts.write_json(run / stage / "manifest.json", manifest)


def test_lent_items_in_another_order_than_the_neighbours_votes_are_caught(copied):
    def promoted(row):
        return {**row, "item_ids": row["item_ids"][::-1]} if row["split"] == "test" else row

    rewritten(copied, "sequential", "sequential/neighbours.parquet", promoted, "neighbours")
    assert failed(audit(copied)) == {"neighbours lend training items only"}


def test_a_target_that_always_stands_first_is_caught(copied):
    def first(row):
        target = row["item_ids"][row["target_index"]]
        return {**row, "item_ids": [target, *(item for item in row["item_ids"] if item != target)], "target_index": 0}

    rewritten(copied, "candidates", "candidates/candidates.parquet", first, "candidates")
    assert failed(audit(copied)) == {"candidate sets are sound"}


def with_one(row, item):
    """The set with another item in the place of a negative."""
    items, place = list(row["item_ids"]), (row["target_index"] + 1) % len(row["item_ids"])
    items[place] = item
    return {**row, "item_ids": items}


def test_test_sets_without_the_hard_negatives_are_caught(copied, monkeypatch):
    honest = candidates_stage.draw_candidates

    def easier(*given, **named):
        sets = honest(*given, **named)
        tribe = {one.decision_id: one.item_ids[one.target_index][:2] for one in sets}
        others = {own: [item for item in CATALOGUE if not item.startswith(own)] for own in ("t0", "t1")}

        def eased(one):
            negatives = iter(others[tribe[one.decision_id]])
            items = [item if n == one.target_index else next(negatives) for n, item in enumerate(one.item_ids)]
            return replace(one, item_ids=tuple(items))

        return [eased(one) if one.split == "test" else one for one in sets]

    with monkeypatch.context() as planted:
        planted.setattr(candidates_stage, "draw_candidates", easier)
        drawn(copied)
    (check,) = [check for check in audit(copied)["checks"] if not check["passed"]]
    assert check["name"] == "candidate sets are sound"
    assert "has another set than its seed draws" in check["detail"]


@pytest.mark.parametrize("planted_in", ["the row", "the tree"])
def test_a_positive_rationale_among_the_stored_reasons_is_caught(copied_whole, monkeypatch, planted_in):
    targets = {f"{one.user_id}#{len(one) - 1}": one.item_ids[-1] for one in people()}
    row, grow = thoughts_stage._thought_row, thoughts_stage.think

    def told_row(decision, *given):
        made = row(decision, *given)
        return {**made, "reason": f"They want {targets[made['decision_id']]}."} if decision.split == "test" else made

    def told_tree(inputs, *given):
        trees = grow(inputs, *given)
        for one, tree in zip(inputs, trees, strict=True):
            if one.decision.split == "test":
                text = f"They want {targets[one.decision.decision_id]}."
                tree.nodes[tree.leaf] = replace(tree.nodes[tree.leaf], text=text, raw=text)
        return trees

    with monkeypatch.context() as planted:
        name, leak = ("_thought_row", told_row) if planted_in == "the row" else ("think", told_tree)
        planted.setattr(thoughts_stage, name, leak)
        thought(copied_whole)
    tuned(copied_whole)
    found = {"chosen leaves and agreements are those of the trees"}
    if planted_in == "the tree":
        found.add("thoughts made again ignore their targets")
    assert failed(audit(copied_whole, users=4)) == found


def test_a_leaf_chosen_by_the_target_is_caught(copied_whole, monkeypatch):
    targets = {f"{one.user_id}#{len(one) - 1}": one.item_ids[-1] for one in people()}
    grow, moved = thoughts_stage.think, []

    def by_target(inputs, *given):
        trees = grow(inputs, *given)
        for one, tree in zip(inputs, trees, strict=True):
            target = targets.get(one.decision.decision_id)
            deepest = [node for node in tree.nodes if node.depth == tree.chosen.depth and node.status == "ok"]
            telling = [node.number for node in deepest if target and target in node.text]
            moved.extend(telling[:1] if telling and tree.leaf not in telling else [])
            tree.leaf = tree.leaf if tree.leaf in telling or not telling else telling[0]
        return trees

    with monkeypatch.context() as planted:
        planted.setattr(thoughts_stage, "think", by_target)
        thought(copied_whole)
    assert moved
    tuned(copied_whole)
    assert failed(audit(copied_whole, users=4)) == {"chosen leaves and agreements are those of the trees"}


def test_agreements_with_the_target_in_sight_are_caught(copied_whole):
    def flattered(row):
        return {**row, "agreement": min(1.0, row["agreement"] + 0.3)} if row["node"] else row

    rewritten(copied_whole, "thoughts", "thoughts/trees.parquet", flattered, "trees")
    (check,) = [one for one in audit(copied_whole, users=4)["checks"] if one["name"].startswith("chosen leaves")]
    assert not check["passed"]
    finished = FinishedRun(copied_whole)
    assert wrong_agreements(finished, finished.decisions("test")[:3])


def test_systems_that_are_asked_with_the_target_are_caught(copied, monkeypatch):
    def telling(self, decisions):
        return [self.sequences[one.user_id].before(one.position + 1) for one in decisions]

    with monkeypatch.context() as planted:
        planted.setattr(Study, "histories", telling)
        assert failed(audit(copied)) == {"systems are asked without the target"}
    counted = Counter(item for one in people() for item in one.item_ids)
    monkeypatch.setattr(Study, "training_counts", counted)
    assert failed(audit(copied)) == {"systems are asked without the target"}


def test_a_neighbour_of_himself_is_caught(copied):
    def own(row):
        return {**row, "user_ids": [row["user_id"], *row["user_ids"][1:]]}

    rewritten(copied, "sequential", "sequential/neighbours.parquet", own, "neighbours")
    (check,) = [check for check in audit(copied)["checks"] if check["name"] == "neighbours lend training items only"]
    assert "the user is a neighbour of himself" in check["detail"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: {**row, "target_index": (row["target_index"] + 1) % 5}, "does not hold its target"),
        (lambda row: {**row, "item_ids": [row["item_ids"][row["target_index"]]] * 5}, "repeats an item"),
        (lambda row: {**row, "split": "train"}, "is no train decision"),
        (lambda row: with_one(row, "nowhere"), "holds an item outside the catalogue"),
        (lambda row: with_one(row, people()[int(row["user_id"][1:])].item_ids[0]), "has a negative from the history"),
    ],
)
def test_unsound_candidate_sets_are_caught(copied, change, told):
    rewritten(copied, "candidates", "candidates/candidates.parquet", change, "candidates")
    (check,) = [check for check in audit(copied)["checks"] if check["name"] == "candidate sets are sound"]
    assert not check["passed"]
    assert told in check["detail"]


def test_an_encoder_that_moved_after_phase_one_is_caught(copied):
    path = copied / "sequential" / "item_vectors.safetensors"
    tensors = artifacts.read_tensors(path)
    artifacts.write_tensors(path, {name: value + 1e-3 for name, value in tensors.items()})
    assert {"artefacts are whole", "encoders are frozen"} <= failed(audit(copied))


def test_a_stage_made_from_other_parents_is_caught(copied, collaborative):
    rewritten(copied, "sequences", "sequences/items.parquet", lambda row: row, "items")
    manifest = artifacts.read_manifest(copied / "sequences")
    artifacts.write_json(copied / "sequences" / "manifest.json", {**manifest, "sha256": "0" * 64})
    assert failed(audit(copied)) == {"stages were made from each other"}


def with_target(decision, sequence, *rest):
    """A base-reason prompt whose history goes one event too far."""
    later = prompts.reason_prompt(replace(decision, position=decision.position + 1), sequence, *rest)
    return replace(later, key=decision.decision_id)


def test_a_target_in_the_history_text_is_caught_when_the_stage_let_it_in(copied_whole, monkeypatch):
    with monkeypatch.context() as planted:
        planted.setattr(thoughts_stage, "reason_prompt", with_target)
        thought(copied_whole)
    assert "recorded inputs are the rebuilt ones" in failed(audit(copied_whole, users=0))


def test_a_target_in_the_history_text_is_caught_while_the_code_leaks(copied_whole, monkeypatch):
    monkeypatch.setattr(thoughts_stage, "reason_prompt", with_target)
    thought(copied_whole)
    report = audit(copied_whole, users=4)
    found = failed(report)
    assert "recorded inputs are the rebuilt ones" not in found  # a record alone would not have told
    assert {"all inputs ignore test targets", "no canary in any prompt"} <= found
    assert "thoughts made again ignore their targets" in found


def test_a_targets_review_in_the_behaviour_text_is_caught(copied_whole, monkeypatch):
    def leaking(decisions, sequences, *rest, **limits):
        made = thought_inputs(decisions, sequences, *rest, **limits)
        words = [sequences[one.decision.user_id].reviews[one.decision.position] for one in made]
        return [replace(one, behaviour=f"{one.behaviour} {word}") for one, word in zip(made, words, strict=True)]

    monkeypatch.setattr(thoughts_stage, "thought_inputs", leaking)
    monkeypatch.setattr("pulse_hf.evaluation.stage_inputs.thought_inputs", leaking)
    thought(copied_whole)
    found = failed(audit(copied_whole, users=0))
    assert {"all inputs ignore test targets", "no canary in any prompt"} <= found


def test_rationales_made_for_test_targets_are_caught(copied, monkeypatch):
    def of_test(run, settings, seed, known):
        return [Decision(sequence.user_id, 5, "train") for sequence in load_sequences(run)]

    def unguarded(decisions, sequences, items, settings):
        return [prompts.rationale_prompt(one, sequences[one.user_id], items, settings.budget) for one in decisions]

    with monkeypatch.context() as planted:
        planted.setattr(rationales_stage, "training_decisions_with_candidates", of_test)
        planted.setattr(rationales_stage, "rationale_inputs", unguarded)
        explained(copied)
    found = failed(audit(copied))
    assert {"rationales explain training targets only", "training inputs ignore validation and test targets"} <= found


def test_votes_of_test_choices_are_caught(copied_whole, monkeypatch):
    def voting(rationales, sequences):
        return [
            (row["user_id"], sequences[row["user_id"]].item_ids[-1]) for row in rationales if row["status"] == "ok"
        ]

    monkeypatch.setattr("pulse_hf.reasoning.shared_reasons.chosen_for", voting)
    tuned(copied_whole)
    assert "recorded inputs are the rebuilt ones" in failed(audit(copied_whole, users=0))
    monkeypatch.setattr("pulse_hf.evaluation.stage_inputs.chosen_for", voting)
    assert "all inputs ignore test targets" in failed(audit(copied_whole, users=0))


def test_rationales_that_admit_to_explain_test_targets_are_caught(copied_whole):
    def relabelled(row):
        return {**row, "split": "test", "position": 5} if row["user_id"] == "u7" else row

    rewritten(copied_whole, "rationales", "rationales/rationales.parquet", relabelled, "rationales")
    assert "rationales explain training targets only" in failed(audit(copied_whole, users=0))


def test_scorers_tuned_on_test_sets_are_caught(copied_whole, monkeypatch):
    honest = scorer_stage.read_sets

    def leaking(run, settings, seed):
        train, validation, counts = honest(run, settings, seed)
        return [*train, *(one for one in load_candidates(run) if one.split == "test")], validation, counts

    with monkeypatch.context() as planted:
        planted.setattr(scorer_stage, "read_sets", leaking)
        tuned(copied_whole)
    assert failed(audit(copied_whole, users=0)) == {"recorded inputs are the rebuilt ones"}


def test_thoughts_and_votes_for_fewer_training_rows_pass_the_audit(copied_whole):
    anew(copied_whole / "thoughts")
    limits = {"training_decisions_per_user": 1, "max_training_users": 15}
    thoughts(copied_whole, ThoughtSettings(engine="extractive", **limits), seed=SEED)
    tuned(copied_whole)
    counts = artifacts.read_manifest(copied_whole / "recommender")["counts"]
    assert counts["train"] == {"read": 80, "kept": 15, "dropped": {"no thought": 65}}
    assert failed(audit(copied_whole, users=2)) == set()


def test_the_whole_road_ends_in_a_report_with_every_system(whole):
    evaluate(whole, EvaluateSettings(audit_users=2), seed=SEED)
    report = artifacts.read_json(whole / "report.json")
    assert report["audit"]["passed"]
    known = [
        name for name in SYSTEMS if name not in (*BASELINES, "encoder-tuned+sasrec", "gated", "thought-space")
    ]  # a stage of their own
    assert set(report["systems"]) == set(known)
    assert report["systems"]["random"]["hr@1"]["value"] == pytest.approx(0.2)
    assert report["protocol"]["users"] == 40
    compared = {(row["system"], row["baseline"]) for row in report["comparisons"]}
    pairs = {(ours, other) for ours in ("pulse", "pulse-fused") for other in known if other != ours}
    assert compared == pairs - {("pulse", "pulse-fused")} | {("pulse-text", "slm+sft")}
    assert set(report["worth_of_a_reason"]["variants"]) == {
        "own",
        "none",
        "another user's",
        "its words shuffled",
        "a random leaf",
    }
    assert report["worth_of_a_reason"]["variants"]["own"]["mrr"] == report["systems"]["pulse"]["mrr"]
    assert set(report["stackers"]) == {"fusion", "fusion+slm+sft", "pulse-fused"}
    fused, ours = report["stackers"]["fusion"], report["stackers"]["pulse-fused"]
    assert fused["names"][: len(INGREDIENTS) + 1] == [*INGREDIENTS, REVIEWS]
    thoughts = ["pulse-text", "votes-of-reason", "votes-of-behaviour"]
    assert ours["names"][: len(INGREDIENTS) + 4] == [*INGREDIENTS, REVIEWS, *thoughts]
    assert set(report["vote_weights"]) == {"text", "reason", "behaviour"}
    assert set(fused["cross_validated"]) == set(ours["cross_validated"])
    rows = report["train_vs_test"]
    assert {name: (row["decisions"], sorted(row)) for name, row in rows.items()} == {
        "tuning rows, models of the other fold": (80, ["agreement", "decisions", "sasrec_hr@1"]),
        "tuning rows, SASRec of all users": (80, ["decisions", "sasrec_hr@1"]),
        "validation rows": (40, ["agreement", "decisions", "sasrec_hr@1", "shared_reasons_hr@1"]),
        "test rows": (40, ["agreement", "decisions", "sasrec_hr@1", "shared_reasons_hr@1"]),
    }
    costs = {name: row["cost"] for name, row in report["systems"].items()}
    assert costs["popularity"]["tokens"] == 0 < costs["slm+sft"]["tokens"] < costs["pulse"]["tokens"]
    sizes = [costs[name]["bytes"] for name in ("popularity", "sasrec", "fusion", "pulse-fused")]
    assert sizes[0] == 0
    assert sizes == sorted(set(sizes))
    text = (whole / "report.md").read_text()
    for heading in ("Systems", "Comparisons", "The worth of a reason", "Train like test", "Leak audit", "Cost"):
        assert f"## {heading}" in text
