"""The card of a dataset repo: one section per artefact, so that another push adds to what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from pulse_hf.hub.cards import metadata_of, plain, render, with_kept_metadata
from pulse_hf.hub.dataset_export import Exported

_PURPOSE = {
    "rationales": "Why people chose training items, written with the choice in sight. `status` is `ok`, or says why "
    "no reason could be read from what the model wrote (`text` is empty then): keep the rows whose `status` is `ok`.",
    "thoughts": "Reasons drafted before a choice is known (`reason`), how well each agrees with the person's "
    "behaviour in Thought Space (`agreement`), and the tree each was chosen from (`leaf` is the chosen node, `parent` "
    "the node that a node refines, -1 none). `status` is `ok`, or says why no reason could be read (`text` is empty "
    "then): keep the nodes whose `status` is `ok` and the thoughts with a `reason`. A tree one of whose nodes quotes "
    "a review is left out whole; its thought stays if it quotes none itself.",
    "sequences": "Who chose what in which order, and the catalogue; `split` says whose target an event is.",
    "candidates": "The frozen sets that every system ranks: one target, the other items drawn with a stored seed.",
}
_SYNTHETIC, _REAL = _KINDS = ("a **synthetic** shop whose people have known motives", "real interactions")
_REVIEWS = "People's reviews are in it: whoever published this said so."
_ANY_SECTION = re.compile(r"<!-- pulse:(\S+) -->.*?<!-- /pulse:\1 -->", re.DOTALL)


def dataset_card(made: Exported, repo_id: str, *, before: str, license_id: str | None, synthetic: bool) -> str:
    """The card of a repo after an artefact was put into it; metadata that its owner added are kept.

    Args:
        made: The artefact.
        repo_id: ``owner/name``.
        before: The repo's card as it is, ``""`` if there is none.
        license_id: The Hub's name of a licence. ``None`` if the publisher stated none: then the embedded world is
            apache-2.0, and what the card says already is kept unless it was said of data of another kind.
        synthetic: Whether the data is the embedded world's.

    Raises:
        ArtifactError: The card as it is has metadata that cannot be read.
    """
    import yaml

    old = metadata_of(before)
    parts = {name: match for name, match in _sections(before).items() if name != made.under}
    parts[made.under] = _part(made, synthetic)
    # The datasets library names no configuration where there is one alone.
    configs = {one.get("config_name", "default"): one for one in _listed(old.get("configs"))}
    infos = {one.get("config_name", "default"): one for one in _listed(old.get("dataset_info"))}
    for table in made.rows:
        configs[made.config_name(table)] = _config(made, table)
        infos[made.config_name(table)] = _info(made, table)
    first = min(configs, key=lambda name: ("/rationales/" not in json.dumps(configs[name].get("data_files")), name))
    configs = {name: one | {"default": name == first} for name, one in configs.items()}
    kinds, untold = _kinds(parts.values()), [part for part in parts.values() if not _kinds([part])]
    # What was said of the shop alone says nothing of real data; what was said of we know not what, stays.
    of_old = old.get("license") if kinds == _kinds(_sections(before).values()) or not _kinds([before]) else None
    stated = license_id or of_old or ("apache-2.0" if kinds == [_SYNTHETIC] and not untold else None)
    data = {
        **({"license": stated} if stated else {}),
        "language": old.get("language") or ["en"],
        "tags": sorted(
            {
                *map(str, _listed(old.get("tags"))),
                "recommender-systems",
                "rationales",
                *(["synthetic-data"] * (_SYNTHETIC in kinds)),
            }
        ),
        "pretty_name": old.get("pretty_name") or plain(repo_id.split("/")[1]),
        "configs": [configs[name] for name in sorted(configs)],
        "dataset_info": [infos[name] for name in sorted(infos)],
    }
    card = render(
        "dataset",
        metadata=yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip(),
        name=plain(repo_id.split("/")[1]),
        introduction=f"Reasons for choices, and what they were made from ({' and '.join(kinds)}). Made with pulse_hf.",
        repo_id=repo_id,
        first_config=first,
        # Not the artefact at hand: the same repo has the same card whatever was pushed last.
        first_folder=min(parts, key=lambda name: (not name.endswith("/rationales"), name)),
        parts=[parts[name] for name in sorted(parts)],
        reviews=any(_REVIEWS in part for part in parts.values()),
        license=stated,
    )
    return with_kept_metadata(card, before)


def _kinds(parts: Iterable[str]) -> list[str]:
    """Where the data of some sections comes from."""
    told = "\n".join(parts)
    return [kind for kind in _KINDS if kind in told]


def _sections(card: str) -> dict[str, str]:
    return {match.group(1): match.group(0) for match in _ANY_SECTION.finditer(card)}


def _part(made: Exported, synthetic: bool) -> str:
    facts = {key: json.loads(value) for key, value in made.facts.items()}
    prompts = [
        f"`{key.split('.', 1)[1]}` {value}" for key, value in sorted(facts.items()) if key.startswith("prompts.")
    ]
    return render(
        "dataset_part",
        under=made.under,
        purpose=_PURPOSE[made.word],
        kind=_SYNTHETIC if synthetic else _REAL,
        engine=plain(str(facts.get("settings.engine", "none"))),
        model=_code(f"{facts.get('model.id', 'none')} at {facts.get('model.revision', 'none')}"),
        prompts=", ".join(prompts) or "none",
        rows=[
            {"config": made.config_name(table), "split": split, "rows": count}
            for table, splits in made.rows.items()
            for split, count in splits.items()
        ],
        reviews=_REVIEWS if made.reviews else "",
        left_out=dict(made.left_out),
        redacted=dict(made.redacted),
    ).strip()


def _config(made: Exported, table: str) -> dict[str, Any]:
    files = [{"split": split, "path": f"{made.under}/{made.place(table, split)}"} for split in made.rows[table]]
    return {"config_name": made.config_name(table), "data_files": files}


def _info(made: Exported, table: str) -> dict[str, Any]:
    from datasets import Features

    return {
        "config_name": made.config_name(table),
        "features": Features.from_arrow_schema(made.features[table])._to_yaml_list(),
        "splits": [{"name": split, "num_examples": count} for split, count in made.rows[table].items()],
    }


def _listed(value: Any) -> list[Any]:
    """What YAML gave as a list, as one thing, or as nothing."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _code(text: str) -> str:
    """Text from data for between backticks, where all other signs are nothing but signs."""
    return " ".join(text.replace("`", " ").split())
