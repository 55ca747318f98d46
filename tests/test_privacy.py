"""What leads to a person is taken out of published texts, and what only looks like it stays."""

import json
import random
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data import event_row, table, write_rows

from pulse_hf.artifacts import ArtifactError
from pulse_hf.data.prepare import prepare
from pulse_hf.hub.dataset_card import dataset_card
from pulse_hf.hub.dataset_export import Exported, _public_facts, export_dataset
from pulse_hf.hub.privacy import Quotes, redacted

PLANTED = {
    "e-mail": [
        "jo.b+x{d2}@mail.example",
        "Ann{d2}@shop.co.uk",
        "ann (at) mail{d2} (dot) com",
        "x_{d4}@sub.mail-host.org",
    ],
    "address of the web": ["https://me.example/a?b={d4}", "www.blog{d2}.example/post", "http://10.0.0.1:8080/x{d2}"],
    "order number": ["{d3}-{d7}-{d7}", "order #{d3}-{d4}-AB", "Order number: {d7}", "order no. A{d4}-{d2}"],
    "street": ["{d3} Elm Street", "{d2} N. Old Mill Rd.", "{d4} Martin Luther King Blvd"],
    "telephone number": [
        "+1 555 {d3} {d4}",
        "(555) {d3}-{d4}",
        "555-{d3}-{d4}",
        "+44 20 {d4} {d4}",
        "030/{d3} {d3} {d2}",
    ],
    "number": ["{d7}{d7}", "4{d3} {d4} {d4} {d4}", "{d4}{d4}{d2}"],
}
CLEAN = [
    "I paid ${d2}.99 for {d2} ounces in 20{d2}, about {d3},{d3} drops.",
    "SPF 30-50 lasts 12-15 hours, {d2}% better than No. {d2}.",
    "Bought on 2018-11-{d2} and again 12/24/2019; open 24/7.",
    "Model KX-{d4}B, 1.7 oz / 50 ml, 3-in-1, size {d2} x {d2} x {d2} cm.",
    "One of {d3} people of {d2} to {d2} years; ratings 4.5, 3.25 and {d2}.",
    "Ordered twice, the order came fast, order again in {d2} days.",
    "The Road Less Travelled sits beside Hand Cream No 5 and 7 Street food books.",
    "Version 2.{d2}.1 at {d2}:{d2}, ISO 9001, route 66, channel no 5, @ home.",
]


def filled(form: str, rng: random.Random) -> str:
    return re.sub(r"\{d(\d)\}", lambda one: "".join(rng.choice("123456789") for _ in range(int(one[1]))), form)


@pytest.mark.parametrize("kind", PLANTED)
def test_what_leads_to_a_person_is_found(kind):
    rng = random.Random(0)
    missed = []
    for number in range(40):
        planted = filled(PLANTED[kind][number % len(PLANTED[kind])], rng)
        found: Counter[str] = Counter()
        text = redacted(f"Soft. Write to {planted}, I was told.", found)
        if planted in text or found.total() != 1 or any(part in text for part in re.findall(r"\d{4,}", planted)):
            missed.append((planted, text))
    assert len(missed) <= 2, missed
    assert redacted(text, Counter()) == text  # what was put in its place stays


def test_what_only_looks_like_it_stays():
    rng = random.Random(1)
    texts = [filled(CLEAN[number % len(CLEAN)], rng) for number in range(1_000)]
    changed = [(text, redacted(text, Counter())) for text in texts if redacted(text, Counter()) != text]
    assert len(changed) <= 20, changed[:5]


def test_a_card_says_of_each_part_where_it_comes_from_and_claims_no_licence_of_real_data(tmp_path):
    def pushed(config, before, synthetic, license_id=None):
        made = Exported("candidates", config, tmp_path, rows={"candidates": {"test": 1}})
        made.features["candidates"] = pa.schema([("item_ids", pa.list_(pa.string()))])
        return dataset_card(made, "a/b", before=before, license_id=license_id, synthetic=synthetic)

    shop = pushed("shop", "", True)
    assert "license: apache-2.0" in shop
    assert "real interactions" not in shop
    both = pushed("mine", shop, False)
    assert "license:" not in both
    assert "none was stated" in both
    assert both.count("From a **synthetic** shop") == both.count("From real interactions") == 1
    assert "synthetic-data" in both
    assert "license: cc0-1.0" in pushed("mine", both, False, "cc0-1.0")
    real = pushed("mine", "", False)
    assert "synthetic" not in real
    assert "license:" not in real
    assert "license:" not in pushed("shop", real, True)
    assert pushed("shop", shop, True) == shop
    own = "---\nlicense: cc-by-nc-4.0\n---\n# Ours\n"
    assert "license: cc-by-nc-4.0" in pushed("mine", own, False)
    older = real.replace(" From real interactions.", "").replace("language:", "license: cc-by-nc-4.0\nlanguage:")
    older = older.replace("real interactions", "them")
    assert "license: cc-by-nc-4.0" in pushed("shop", older, True)
    assert "license:" not in pushed("shop", older.replace("license: cc-by-nc-4.0\n", ""), True)
    alone = "---\ndataset_info:\n  features: []\nconfigs:\n- data_files: data/*.parquet\n---\n# Theirs\n"
    assert "config_name: mine" in pushed("mine", alone, True)  # datasets names no configuration where one is alone
    for empty in ("tags:\nconfigs:\ndataset_info:", "tags: music"):
        card = pushed("mine", f"---\n{empty}\n---\n# Theirs\n", True)
        assert ("- music\n" in card) == ("music" in empty)
    for form in (
        "\n---\nlicense: mit\n---\n# Mine",
        "---  \nlicense: mit\n---",
        "---\r\nlicense: mit\r\n---\r\n# Mine",
    ):
        assert ("license: mit" in pushed("mine", form, False)) == (form[:5] != "---  ")  # as the Hub reads it
    with pytest.raises(ArtifactError, match="metadata that is no YAML"):
        pushed("mine", "---\n{ [\n---\n", True)
    theirs = "---\nconfigs:\n- config_name: x\n  data_files: data/*.parquet\n---\n# Theirs\n"
    assert "config_name: x" in pushed("shop", theirs, True)


def test_a_card_says_that_reviews_are_in_it_as_long_as_they_are(tmp_path):
    def pushed(config, before, reviews):
        made = Exported("candidates", config, tmp_path, rows={"candidates": {"test": 1}}, reviews=reviews)
        made.features["candidates"] = pa.schema([("item_ids", pa.list_(pa.string()))])
        return dataset_card(made, "a/b", before=before, license_id=None, synthetic=False)

    said = "People's reviews are included"
    with_reviews = pushed("one", "", True)
    assert said in with_reviews
    assert said in pushed("two", with_reviews, False)
    assert said not in pushed("one", with_reviews, False)


def test_quotes_are_found_in_scripts_without_spaces():
    quotes = Quotes({"u": ["送给住在杭州西湖区的妈妈李秀英。她很喜欢。很好", "とても静かで気に入りました。"]})
    assert quotes.found("u", 'They say: "送给住在杭州西湖区的妈妈".')
    assert quotes.found("u", "They said 她很喜欢 of it.")  # a whole sentence of four
    assert quotes.found("u", "静かで気に入りました")
    assert not quotes.found("u", "They like 很好 tea and 杭州 silk.")
    assert not quotes.found("u", "They like quiet things.")


def test_no_folder_of_this_machine_is_in_published_settings(tmp_path):
    (tmp_path / "why.jsonl").write_text("")
    facts = _public_facts(
        {
            "settings.engine": '"recorded"',
            "settings.model": '"data/clients/acme/why.jsonl"',
            "settings.columns": json.dumps({"files": [str(tmp_path / "why.jsonl"), "owner/name"], "count": 3}),
        }
    )
    assert {key: json.loads(value) for key, value in facts.items()} == {
        "settings.engine": "recorded",
        "settings.model": "why.jsonl",
        "settings.columns": {"files": ["why.jsonl", "owner/name"], "count": 3},
    }


def test_a_published_review_has_no_address_and_the_card_counts_it(tmp_path):
    words = "Mail jo@mail.example. Soft and quiet, 12-15 hours."
    rows = [event_row(f"u{user}", f"i{item}", item, rating=5, review=words) for user in range(2) for item in range(3)]
    settings = table(write_rows(tmp_path / "log.jsonl", rows), min_user_events=0, min_item_events=0)
    prepare(tmp_path / "run", settings, seed=0)
    (tmp_path / "out").mkdir()
    made = export_dataset(tmp_path / "run", "sequences", tmp_path / "out", config="shop", include_reviews=True)
    assert made.redacted == {"e-mail": 6}
    reviews = [
        review for path in (tmp_path / "out").glob("*.parquet") for review in pq.read_table(path)["review"].to_pylist()
    ]
    assert reviews == ["Mail [e-mail]. Soft and quiet, 12-15 hours."] * 6
    assert "Taken out of texts: 6 × e-mail." in dataset_card(
        made, "a/b", before="", license_id="other", synthetic=False
    )
