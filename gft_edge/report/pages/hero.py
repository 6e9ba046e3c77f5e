"""The picture at the top of a run's page: an image through the stages, beside accuracy against latency."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from gft_edge.report.figures import plots
from gft_edge.report.pages.picture_sections import shown_predictions
from gft_edge.report.pages.view import View


def hero(view: View) -> dict[str, Any] | None:
    """Returns the data of the picture: panels of one image, the figure, or both; None if the run has neither.

    The image is the first one that is classified correctly; the first of all if the true classes are unknown.
    """
    found: dict[str, Any] = {"panels": None, "figure": None}
    for file, record in view.found.predictions:
        rows = [row for row in shown_predictions(view, file, record) if row["panels"]]
        if rows:
            row = next((row for row in rows if row["label"] == row["truth"]), rows[0])
            artifact = PurePosixPath(record["artifact"]).name
            found |= {"panels": row["panels"], "name": row["name"], "label": row["label"], "artifact": artifact}
            break
    if view.tradeoff is not None:
        points = view.tradeoff.points
        found["figure"] = plots.tradeoff(points)
        found["measured"] = f"top-1 on {view.tradeoff.accuracy}; median latency on {view.tradeoff.latency}"
        found["unstable"] = any(point.is_unstable for point in points)
    return found if found["panels"] or found["figure"] else None
