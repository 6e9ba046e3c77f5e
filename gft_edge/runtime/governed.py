"""A family of budgets behind a governor: each frame runs with the budget that fits it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.budget import TokenBudget
from gft_edge.bundle import is_bundle, load_bundle
from gft_edge.errors import ConfigError
from gft_edge.manifest import Artifact, load_artifact
from gft_edge.runtime.backends.sessions import Session, SessionOptions, fitted
from gft_edge.runtime.backends.table import DEFAULT, parse_backend
from gft_edge.runtime.classifier import Classifier, Prediction
from gft_edge.runtime.governor import Governor, GovernorOptions

if TYPE_CHECKING:
    from gft_edge.runtime.image_inputs import ImageLike

TIMED_RUNS = 5


@dataclass
class FamilySessions:
    """The sessions of a family, each opened when it is first asked for.

    Attributes:
        members: artefact of each budget, the largest budget first.
        backend: see :data:`gft_edge.runtime.backends.table.BACKENDS`.
        threads: 0 takes one per core.
        share_memory: on ONNX Runtime, sessions share the pages of the family's file of weights and one arena. Memory is near that
            of one budget, and a prediction takes longer (docs/governor.md has figures).
    """

    members: Mapping[str, Artifact]
    backend: str = DEFAULT
    threads: int = 0
    share_memory: bool = True
    _opened: dict[str, Classifier] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls, path: str | Path, backend: str = DEFAULT, threads: int = 0, share_memory: bool = True
    ) -> FamilySessions:
        """Reads the manifest of a family; no session is opened yet.

        Args:
            path: of an artefact with one budget or several, or of a bundle with one.
            backend, threads, share_memory: see :class:`FamilySessions`.

        Raises:
            ArtifactError: missing or damaged, or a bundle whose artefact is another one.
            ConfigError: one member of a family is named.
        """
        whole = load_bundle(path).artifact() if is_bundle(Path(path)) else load_artifact(path)
        if whole.member:
            raise ConfigError(f"{path}: is one budget of a family; give the folder {whole.path}")
        budgets = (whole.manifest.budget, *(member.budget for member in whole.manifest.family.values()))
        members = {budget.id: load_artifact(f"{whole.path}@{budget.id}") for budget in sorted(budgets, key=_tokens)}
        return cls(members, backend, threads, share_memory)

    @property
    def opened(self) -> tuple[str, ...]:
        """Budgets whose session is open."""
        return tuple(self._opened)

    def classifier(self, budget: str) -> Classifier:
        """Returns the classifier of a budget.

        Raises:
            ConfigError: no such budget, or an unknown backend or setting of it.
            ArtifactError: a changed file, or an engine that does not fit this machine.
        """
        if budget not in self.members:
            raise ConfigError(f"no budget {budget!r} in this family; there are: {', '.join(self.members)}")
        if budget not in self._opened:
            member = self.members[budget]
            asked = parse_backend(self.backend)
            options = SessionOptions(asked.key, self.threads, settings=asked.settings, shared=self.share_memory)
            session: Session = asked.backend.open(member, options)
            self._opened[budget] = Classifier(member, fitted(session, member.manifest))
        return self._opened[budget]

    def measure_ms(self, image: npt.NDArray[np.uint8] | None = None, runs: int = TIMED_RUNS) -> dict[str, float]:
        """Returns the median latency of every budget here and now, from pixels to prediction; opens all sessions.

        Args:
            image: (H, W, 3) uint8 of the usual size; by default one of the network's input size.
            runs: timed after one that is not.
        """
        found = {}
        for budget, member in self.members.items():
            spec = member.manifest.preprocess
            frame = np.zeros((spec.height, spec.width, 3), np.uint8) if image is None else image
            classifier = self.classifier(budget)
            times = [_timed(classifier, frame)[1] for _ in range(runs + 1)]
            found[budget] = float(np.median(times[1:]))
        return found


@dataclass
class GovernedClassifier:
    """Classifies frames, each with the budget that its deadline, the temperature and the power mode allow.

    Attributes:
        sessions: of the family.
        governor: its state.
    """

    sessions: FamilySessions
    governor: Governor

    @classmethod
    def open(
        cls,
        path: str | Path,
        options: GovernorOptions | None = None,
        latencies_ms: Mapping[str, float] | None = None,
        **session_options: Any,
    ) -> GovernedClassifier:
        """Opens a family.

        Args:
            path: of its folder, or of a bundle with it.
            options: of the governor.
            latencies_ms: of each budget at rest, from pixels to prediction; by default all are measured now, which opens every
                session. With given ones a session is opened in the first frame that needs it; that frame is late.
            session_options: see :meth:`FamilySessions.open`.

        Raises:
            ArtifactError: missing, damaged or changed.
            ConfigError: latencies of other budgets than the family's.
        """
        sessions = FamilySessions.open(path, **session_options)
        if latencies_ms is None:
            latencies_ms = sessions.measure_ms()
        if set(latencies_ms) != set(sessions.members):
            raise ConfigError(
                f"latencies are of {', '.join(latencies_ms) or 'no budget'}, the family has {', '.join(sessions.members)}"
            )
        ordered = {budget: latencies_ms[budget] for budget in sessions.members}
        return cls(sessions, Governor(options or GovernorOptions(), ordered))

    def predict(
        self,
        image: ImageLike,
        deadline_ms: float,
        temperature_c: float | None = None,
        power_mode: str | None = None,
    ) -> tuple[str, Prediction]:
        """Returns the budget that was taken for a frame, and its prediction.

        Args:
            image: one, of a kind that :meth:`Classifier.predict` takes.
            deadline_ms, temperature_c, power_mode: see :meth:`Governor.choose`.
        """
        budget = self.governor.choose(deadline_ms, temperature_c, power_mode)
        is_new = budget not in self.sessions.opened
        prediction, ms = _timed(self.sessions.classifier(budget), image)
        if not is_new:  # the first run of a session allocates
            self.governor.observe(budget, ms)
        return budget, prediction


def _timed(classifier: Classifier, image: ImageLike) -> tuple[Prediction, float]:
    start = time.perf_counter()
    (prediction,) = classifier.predict([image])
    return prediction, 1e3 * (time.perf_counter() - start)


def _tokens(budget: TokenBudget) -> int:
    """Orders budgets by the patches that all stages keep together, the most first."""
    return -sum(budget.keep)
