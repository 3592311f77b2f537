"""What a monitor can be asked between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..history import GammaHistory
from ..stats import GammaStats
from .parameters import Parameters
from .results import Results

if TYPE_CHECKING:
    from .meter import Meter
    from .session import Session


class Readings:
    """The properties of `GammaMonitor`."""

    _session: Session
    _parameters: Parameters
    _meter: Meter
    _results: Results
    _steps: int

    @property
    def scaler(self) -> Any:
        """The GradScaler whose scale is divided out, or None."""
        return self._meter.scaler

    @property
    def mode(self) -> str:
        """ "exact" or "micro": what the next step is measured by."""
        return "exact" if self._session.exact else "micro"

    @property
    def coverage(self) -> Mapping[str, str | None]:
        """Every parameter that trains → the rule that measures it; None for one that is left out (strict=False)."""
        return dict(self._parameters.coverage)

    @property
    def stats(self) -> GammaStats:
        """What the last measured step gave: on the steps between, which `every` leaves out, it stays.

        Raises:
            RuntimeError: no step has been measured yet.
        """
        if self._results.last is None:
            raise RuntimeError(
                "stats: expected a step() of this monitor that gave statistics, and there was none yet, or none since "
                "load_state_dict(). The first step gives them, unless it is skipped with a warning."
            )
        return self._results.last

    @property
    def smoothed(self) -> GammaStats:
        """`stats.smoothed`: signal and noise of single samples, averaged over the measured steps so far.

        After `load_state_dict` these are the steps of the other monitor.

        Raises:
            RuntimeError: no step has been measured yet, by this monitor or by the one whose state it loaded.
        """
        smoothed = self._results.loaded or self.stats.smoothed
        assert smoothed is not None
        return smoothed

    @property
    def steps(self) -> int:
        """How many calls of `step` there were, measured or not; `load_state_dict` goes on from another's."""
        return self._steps

    @property
    def history(self) -> GammaHistory:
        """The rows of all measured steps.

        Raises:
            RuntimeError: none is kept.
        """
        if self._results.history is None:
            raise RuntimeError(
                "history: expected a monitor that keeps one. Pass history='run.jsonl', or history=sdsd.GammaHistory(), "
                "to GammaMonitor."
            )
        return self._results.history
