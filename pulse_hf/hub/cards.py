"""Cards of published repos, rendered from reports and manifests; a card with an unfilled field does not render.

Templates are the Markdown files of ``hub_cards/`` (Jinja). Titles and names from data go through :func:`plain`: a card
shows them, and nothing in them acts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import ArtifactError
from pulse_hf.hub.shipped import shipped

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CITATION = """@article{biswas2025why,
  title = {From What to Why: Thought-Space Recommendation with Small Language Models},
  author = {Biswas, Prosenjit and Shaik, Pervez and Thorat, Abhinav and Kolla, Ravi and Pedanekar, Niranjan},
  journal = {arXiv preprint arXiv:2510.08626},
  year = {2025}
}"""
_METRICS = {"hr@1": "HR@1", "ndcg@10": "NDCG@10", "mrr": "MRR"}
# What an earlier push said of what it pushed; a licence is decided before.
_OF_ONE_PUSH = {"license", "base_model", "model-index"}


def plain(text: str) -> str:
    """Text from data as one line without markup.

    Example:
        >>> plain("A <b>cup</b> [here](http://x)")
        'A b cup /b here http://x'
    """
    return " ".join(re.sub(r"[<>\[\](){}`*_|\\\"#~!]", " ", text).split())


def render(template: str, **fields: Any) -> str:
    """Fill one template of ``hub_cards/``.

    Raises:
        ArtifactError: A field that the template names is missing.
    """
    import jinja2

    folder = jinja2.FileSystemLoader(shipped("hub_cards"))
    # Markdown, not HTML: what comes from data is made plain instead of escaped.
    environment = jinja2.Environment(  # noqa: S701
        loader=folder, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    try:
        text = environment.get_template(f"{template}.md").render(citation=CITATION, **fields)
    except jinja2.UndefinedError as error:
        raise ArtifactError(f"card {template}: {error}; nothing is published without it") from error
    return re.sub(r"\n{3,}", "\n\n", text)


def metadata_of(card: str) -> dict[str, Any]:
    """The YAML at the head of a card; nothing if there is none.

    Raises:
        ArtifactError: It cannot be read.
    """
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    match = REGEX_YAML_BLOCK.search(card)
    try:
        found = yaml.safe_load(match.group(2)) if match else {}
    except yaml.YAMLError as error:
        raise ArtifactError(
            f"the repo's README.md has metadata that is no YAML ({error}); correct it there"
        ) from error
    return found if isinstance(found, dict) else {}


def with_kept_metadata(card: str, before: str) -> str:
    r"""A card with what the repo's owner set in the one before and this one leaves open.

    The terms of a gate and the size of a dataset, for example; a licence's name and link only with that licence.

    Args:
        card: The new card.
        before: The repo's card as it is, ``""`` if there is none.

    Raises:
        ArtifactError: The metadata of the one before cannot be read.

    Example:
        >>> before = "---\nlicense: mit\nextra_gated_prompt: Be kind.\n---\n# Mine\n"
        >>> print(with_kept_metadata("---\nlicense: mit\n---\n# New", before))
        ---
        license: mit
        extra_gated_prompt: Be kind.
        ---
        # New
    """
    import yaml

    old, new = metadata_of(before), metadata_of(card)
    left = {*new, *_OF_ONE_PUSH}
    if old.get("license") != new.get("license"):
        left |= {"license_name", "license_link"}
    kept = {key: value for key, value in old.items() if key not in left}
    added = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True) if kept else ""
    return card.replace("\n---\n", f"\n{added}---\n", 1)


def _number(value: float | None, *, sign: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def span(row: Mapping[str, float]) -> str:
    """A value with its interval."""
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


def systems_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of every system, worst first."""
    ranked = sorted(report["systems"].items(), key=lambda pair: pair[1]["hr@1"]["value"])
    return [
        {
            "name": name,
            "hr": span(row["hr@1"]),
            "ndcg": _number(row["ndcg@10"]["value"]),
            "cold": _number(row["slices"]["cold"]["hr@1"]["value"]),
            "warm": _number(row["slices"]["warm"]["hr@1"]["value"]),
        }
        for name, row in ranked
    ]


def differences(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Comparisons as a card shows them."""
    return [
        {
            "system": str(row["system"]),
            "baseline": str(row["baseline"]),
            "p": f"{row['p']:.4f}",
            "p_holm": f"{row['p_holm']:.4f}",
            **{name: _number(row[name], sign=True) for name in ("difference", "low", "high")},
        }
        for row in rows
    ]


def worth_of_a_reason(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Comparisons of the person's own reason with none and with others, by HR@1 of ``pulse``."""
    rows = report.get("worth_of_a_reason", {}).get("comparisons", [])
    return [row for row in rows if row["metric"] == "hr@1" and row["system"] == "own"]


def matching(validation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A thought space's figures before and after training, without the words of titles."""
    return {
        when: {
            "pairs": validation[when]["titles_masked"]["pairs"],
            "recall": _number(validation[when]["titles_masked"]["r@1"]),
            "mrr": _number(validation[when]["titles_masked"]["mrr"]),
        }
        for when in ("before", "after")
    }


def eval_results(report: Mapping[str, Any], system: str, data: str, data_id: str | None) -> list[EvalResult]:
    """The ``model-index`` entries of one system.

    Args:
        report: A run's report.
        system: Its row.
        data: What the data is called.
        data_id: The data's repo, if it is published.
    """
    from huggingface_hub import EvalResult

    protocol = report["protocol"]
    return [
        EvalResult(
            task_type="text-ranking",
            task_name="next-item recommendation",
            dataset_type=data_id or "private",
            dataset_name=data,
            dataset_split="test",
            metric_type=name,
            metric_name=f"{title}, target among {protocol['negatives']} {protocol['sampling']} negatives",
            metric_value=report["systems"][system][name]["value"],
        )
        for name, title in _METRICS.items()
    ]


def eval_results_file(report: Mapping[str, Any], system: str, data_id: str) -> str:
    """The newer form of the same figures: the text of a ``.eval_results/*.yaml`` file."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = [
        EvalResultEntry(dataset_id=data_id, task_id=name, value=report["systems"][system][name]["value"])
        for name in _METRICS
    ]
    return str(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))


def model_metadata(
    *,
    library: str,
    pipeline: str | None,
    tags: Iterable[str],
    license_id: str | None,
    base_model: str | None = None,
    datasets: Iterable[str] = (),
    results: list[EvalResult] | None = None,
    name: str = "",
    synthetic: bool = False,
    language: Any = "en",
) -> str:
    """The YAML of a model card."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name=library,
        pipeline_tag=pipeline,
        tags=["recommender-systems", *tags, *(("synthetic-data",) if synthetic else ())],
        license=license_id,
        language=language,
        base_model=base_model,
        datasets=list(datasets) or None,
        eval_results=results,
        model_name=name if results else None,
    )
    return str(data.to_yaml())
