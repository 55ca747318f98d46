"""Figure 3 of the paper: histories, own and foreign rationales in two dimensions, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

Vectors = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.float32]"]


def draw_thought_space(path: Path, before: Vectors, after: Vectors, *, caption: str, seed: int) -> None:
    """Draw t-SNE projections of the space before and after training (paper §4.1, Figure 3).

    Histories are green, their own rationales blue with solid links, rationales of others red with dotted
    links. t-SNE keeps neighbourhoods, not distances; each panel has its own axes, and the title's mean
    cosines are the measure.

    Args:
        path: The PNG to write.
        before: Histories, positive and negative rationales of the same n rows, each (n, dim), unit length.
        after: The same rows after training.
        caption: What was measured; drawn above the panels.
        seed: Of the projection.

    Raises:
        ValueError: Fewer than two rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(before[0]) < 2:
        raise ValueError(f"Found {len(before[0])} pairs, expected at least 2 to draw.")
    # Not pyplot: it keeps global state, and would look for a display.
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, name, vectors in zip(panels, ("before training", "after training"), (before, after), strict=True):
        _panel(axes, name, vectors, seed)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(caption)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _panel(axes: Axes, name: str, vectors: Vectors, seed: int) -> None:
    from sklearn.manifold import TSNE

    histories, positives, negatives = vectors
    points = np.concatenate(vectors)
    perplexity = min(30.0, (len(points) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed).fit_transform(points)
    history, positive, negative = np.split(flat, 3)
    for start, own, foreign in zip(history, positive, negative, strict=True):
        axes.plot(*zip(start, own, strict=True), color="tab:blue", linewidth=0.7, zorder=1)
        axes.plot(
            *zip(start, foreign, strict=True), color="tab:red", linewidth=0.4, linestyle=":", alpha=0.6, zorder=1
        )
    rows = (
        (history, "tab:green", "history"),
        (positive, "tab:blue", "its rationale"),
        (negative, "tab:red", "rationale of another user"),
    )
    for values, colour, label in rows:
        axes.scatter(values[:, 0], values[:, 1], s=14, color=colour, label=label, zorder=2)
    own, foreign = (float((histories * other).sum(1).mean()) for other in (positives, negatives))
    axes.set_title(f"{name}: mean cosine {own:.2f} own, {foreign:.2f} foreign", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
