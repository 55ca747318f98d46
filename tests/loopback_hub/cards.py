"""The metadata block of a README, and what the Hub refuses in it.

The real rules are not public. These are the ones known from the documentation and from refused uploads.
"""

import json
from typing import Annotated, Any, Literal

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

LICENSES = set(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
    mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
    lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
    """.split()
)


def known_license(name: str) -> str:
    if name not in LICENSES:
        raise ValueError(f"{name!r} is not a license id of the Hub; use 'other' with license_name and license_link")
    return name


def listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


RepoId = Annotated[str, StringConstraints(pattern=r"^(?:[\w-][\w.-]*/)?[\w-][\w.-]*$", max_length=193)]
RepoIds = Annotated[list[RepoId], BeforeValidator(listed)]
Texts = Annotated[list[str], BeforeValidator(listed)]
Licenses = Annotated[list[Annotated[str, AfterValidator(known_license)]], BeforeValidator(listed)]
Languages = Annotated[
    list[Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$|^code$|^multilingual$")]],
    BeforeValidator(listed),
]
Colour = Literal["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]


class Checked(BaseModel):
    """Unknown keys are allowed; known ones must have their own YAML type (`no` is no language, 6.3 no version)."""

    model_config = ConfigDict(strict=True, extra="allow")


class Task(Checked):
    type: str
    name: str | None = None


class DatasetReference(Checked):
    type: RepoId
    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None


class Metric(Checked):
    type: str
    value: Annotated[Any, Field()]
    name: str | None = None


class Result(Checked):
    task: Task
    dataset: DatasetReference
    metrics: Annotated[list[Metric], Field(min_length=1)]


class IndexedModel(Checked):
    name: str
    results: list[Result]


class Card(Checked):
    license: Licenses | None = None
    license_name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+$")] | None = None
    license_link: str | None = None
    tags: list[str] | None = None
    language: Languages | None = None


class ModelCard(Card):
    base_model: RepoIds | None = None
    datasets: RepoIds | None = None
    metrics: Texts | None = None
    library_name: str | None = None
    pipeline_tag: str | None = None
    widget: list[Any] | None = None
    model_index: Annotated[list[IndexedModel] | None, Field(alias="model-index")] = None


class DataConfig(Checked):
    config_name: str
    default: bool | None = None


class DatasetCard(Card):
    pretty_name: str | None = None
    size_categories: Texts | None = None
    task_categories: list[str] | None = None
    task_ids: list[str] | None = None
    configs: list[DataConfig] | None = None


class SpaceCard(Card):
    sdk: Literal["gradio", "streamlit", "docker", "static"]
    title: str | None = None
    emoji: Annotated[str, StringConstraints(max_length=8)] | None = None
    colour_from: Annotated[Colour | None, Field(alias="colorFrom")] = None
    colour_to: Annotated[Colour | None, Field(alias="colorTo")] = None
    sdk_version: str | None = None
    python_version: str | float | None = None
    app_file: str | None = None
    pinned: bool | None = None
    short_description: Annotated[str, StringConstraints(max_length=60)] | None = None
    models: RepoIds | None = None
    datasets: RepoIds | None = None


CARDS = {"model": ModelCard, "dataset": DatasetCard, "space": SpaceCard}


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that comes twice is an error, as it is on the Hub."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicated mapping key {key!r}", node.start_mark)
        return super().construct_mapping(node, deep)


def metadata_of(content: str) -> dict[str, Any]:
    """The metadata of a README as JSON values; empty when there is none.

    Raises:
        ValueError: not YAML, or not a mapping.
    """
    block = REGEX_YAML_BLOCK.search(content)
    try:
        loaded = yaml.load(block.group(2), UniqueKeys) if block else None  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded or {}, dict):
        raise ValueError(f"the metadata must be a mapping, found {type(loaded).__name__}")
    return json.loads(json.dumps(loaded or {}, default=str))


def check_card(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the metadata of a README.

    Examples:
        >>> check_card("---\\nlicense: mit\\n---\\n# Hello", "model")
        ([], [])
        >>> check_card("---\\nbase_model: /tmp/base\\n---\\n", "model")[0][0].partition(":")[0]
        '"base_model[0]"'
        >>> check_card("# Hello", "model")
        ([], ['empty or missing yaml metadata in repo card'])
    """
    try:
        metadata = metadata_of(content)
        if not metadata:
            return [], ["empty or missing yaml metadata in repo card"]
        CARDS[repo_type].model_validate(metadata)
    except ValidationError as error:
        return [f'"{place(found["loc"])}": {found["msg"]}, found {found["input"]!r}' for found in error.errors()], []
    except (ValueError, TypeError) as error:
        return [str(error)], []
    return [], []


def place(location: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
