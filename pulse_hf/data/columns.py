"""Which column holds what: declared by the user for a table, known for the published formats."""

from __future__ import annotations

from dataclasses import dataclass, field

from pulse_hf.data.rows import Layout


@dataclass(frozen=True)
class Columns:
    """Which column of an interaction table holds what.

    Args:
        user_id: The person.
        item_id: What was chosen.
        timestamp: When; needed unless ``order`` is given.
        rating: Stars; ``None`` if there are none.
        review: The person's words; ``None`` if there are none.
        order: An integer that orders the events *within* a user, for data without times. It takes the
            place of ``timestamp``, and sequences then have no timestamps.
        summary: A headline that the person gave the review; ``None`` if there are none.
    """

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"
    rating: str | None = None
    review: str | None = None
    order: str | None = None
    summary: str | None = None

    def __post_init__(self) -> None:
        if self.timestamp is None and self.order is None:
            raise ValueError(
                "Columns has neither timestamp nor order; sequences need one. The order of rows in a file is not used."
            )
        if self.user_id == self.item_id:
            raise ValueError(f"user_id and item_id are one column, {self.user_id!r}; name the column of each.")

    @property
    def when(self) -> str:
        """The column that orders a user's events."""
        return self.order or self.timestamp or ""

    def declared(self) -> list[str]:
        """Every column that must occur in the file."""
        optional = [name for name in (self.rating, self.summary, self.review) if name is not None]
        return [self.user_id, self.item_id, self.when, *optional]


@dataclass(frozen=True)
class ItemColumns:
    """Which column of an item table holds what.

    Args:
        item_id: The item.
        title: The name a person sees; may be empty in some rows.
        description: Words about it; the column may be absent.
        brand: Maker or publisher; the column may be absent.
        category: A name, or a list of names from wide to narrow; the column may be absent.
        category_separator: What stands between names in one text (``"|"`` in MovieLens); ``""`` for none.
        category_flags: Columns whose ``1`` means that the column's name is a category (MovieLens 100k).
    """

    item_id: str = "item_id"
    title: str = "title"
    description: str | None = "description"
    brand: str | None = None
    category: str | None = None
    category_separator: str = ""
    category_flags: tuple[str, ...] = ()

    def known(self) -> list[str]:
        """Every column that is read where it occurs."""
        optional = [name for name in (self.description, self.brand, self.category) if name is not None]
        return [self.item_id, self.title, *optional, *self.category_flags]


@dataclass(frozen=True)
class Format:
    """How a collection of interactions and items is written.

    Args:
        columns: Columns of the interactions.
        item_columns: Columns of the items.
        timestamp_unit: ``"s"``, ``"ms"``, ``"us"`` or ``"iso"``; not used with ``columns.order``.
        rating_range: Lowest and highest rating there can be; of another highest than 5 they are kept as of five stars.
        layout: How the interactions are written, if their file does not say so itself.
        item_layout: The same for the items.
        encoding: How the bytes of text files are read.
    """

    columns: Columns = field(default_factory=Columns)
    item_columns: ItemColumns = field(default_factory=ItemColumns)
    timestamp_unit: str = "s"
    rating_range: tuple[float, float] = (1.0, 5.0)
    layout: Layout | None = None
    item_layout: Layout | None = None
    encoding: str = "utf-8"


_AMAZON = Columns("reviewerID", "asin", "unixReviewTime", rating="overall", review="reviewText", summary="summary")
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_ML_100K = ("user_id", "item_id", "rating", "timestamp")
_ML_100K_ITEMS = ("item_id", "title", "release", "video_release", "url", *_GENRES)
_ML_GENRES = ItemColumns("item_id", "title", None, category="genres", category_separator="|")

# The published formats, each as its own documentation describes it.
FORMATS = {
    # Lines of metadata are Python dictionaries, categories are paths.
    "amazon-2014": Format(
        _AMAZON, ItemColumns("asin", "title", "description", "brand", "categories"), item_layout=Layout()
    ),
    "amazon-2018": Format(_AMAZON, ItemColumns("asin", "title", "description", "brand", "category")),
    # Milliseconds; variants of a product share their parent's id, by which the metadata is keyed.
    "amazon-2023": Format(
        Columns("user_id", "parent_asin", "timestamp", rating="rating", review="text", summary="title"),
        ItemColumns("parent_asin", "title", "description", "store", "categories"),
        timestamp_unit="ms",
    ),
    # u.data and u.item
    "movielens-100k": Format(
        Columns(rating="rating"),
        ItemColumns("item_id", "title", None, category_flags=_GENRES),
        layout=Layout("\t", _ML_100K),
        item_layout=Layout("|", _ML_100K_ITEMS),
        encoding="latin-1",
    ),
    # ratings.dat and movies.dat
    "movielens-1m": Format(
        Columns(rating="rating"),
        _ML_GENRES,
        layout=Layout("::", _ML_100K),
        item_layout=Layout("::", ("item_id", "title", "genres")),
        encoding="latin-1",
    ),
    # ratings.csv and movies.csv
    "movielens-latest": Format(
        Columns("userId", "movieId", "timestamp", rating="rating"),
        ItemColumns("movieId", "title", None, category="genres", category_separator="|"),
        rating_range=(0.5, 5.0),
    ),
}
