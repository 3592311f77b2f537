"""One step measured: what its passes left is summed, proved and joined over ranks."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..layers import UnsupportedError
from ..sources import independent_count
from ..uses import Pass
from .arrivals import Arrivals
from .averages import Step
from .inputs import capturing
from .micro import MicroBatches, hooked_in_micro_mode
from .parameters import Parameters, by_reason
from .proof import EVERY, EVERY_ON_CPU, Prover, impossible, max_eps
from .ranks import Ranks
from .refusals import (
    cannot_be_told_apart,
    no_backward,
    of_unmeasured,
    refuse_foreign,
    refused_uses,
    unmeasured,
    unproved,
    warn_of_doubt,
    warn_of_too_few,
)
from .sums import Sums, Vector, on, scaled

if TYPE_CHECKING:
    from .session import Session

_IN_A_GRAPH = (
    "step() inside a CUDA graph: not with several ranks or with a GradScaler, whose scale has to be waited for. Call "
    "it outside of the graph, or capture without them."
)


Projections = dict[str, list[Tensor]]
"""Parameter → those of what is added to its .grad."""
Dtypes = dict[str, torch.dtype]
Differences = tuple[dict[str, float], float | None]


class Meter:
    """Reads a step off the session and the gradients.

    Attributes:
        micro: the norms of whole backward passes, where these are the samples.
        reduction: "mean" | "sum": what the gradients of the samples make.
        captured: the step that went into a CUDA graph, whose numbers each replay writes anew.
        scaler: the GradScaler whose scale is divided out.
    """

    def __init__(
        self,
        session: Session,
        parameters: Parameters,
        ranks: Ranks,
        sums: Sums,
        *,
        loss_reduction: str,
        population: int | None,
        scaler: Any,
        strict: bool,
    ) -> None:
        self._session, self._parameters, self._ranks, self._sums = session, parameters, ranks, sums
        self.reduction, self._population, self._strict, self.scaler = loss_reduction, population, strict, scaler
        self.micro: MicroBatches | None = None
        # Several ranks wait for the device at every step, to know how many samples there are.
        self.prover = Prover(EVERY_ON_CPU if parameters.device.type == "cpu" or ranks.world > 1 else EVERY)
        self.arrivals, self._nothing_left = Arrivals(), ""
        self._doubted: list[str] | None = None
        session.marks.always, session.marks.begun = ranks.world > 1 and not ranks.sharded, self.prover.again
        session.marks.elsewhere = ranks.sharded
        self.captured: Step | None = None

    def begin_step(self, measuring: bool) -> None:
        self._session.reset(measuring)
        proving = self.prover.due() or (self._ranks.wrapped is not None and bool(self._ranks.hooks()))
        self._session.directions = self.prover.direction if proving else None
        # Ranks have to agree on which steps they prove.
        self._session.direction = self.prover.direction if self._ranks.world == 1 and not self._ranks.sharded else None

    def measure(self) -> tuple[Step | None, int]:
        """What the step gave (None: nothing, or nothing yet), and how many backward passes it had."""
        session, parameters = self._session, self._parameters
        if session.leftovers.held or session.strangers:
            refuse_foreign(session, parameters)
        if session.unknown is not None:
            raise UnsupportedError(session.unknown)
        exact = session.exact
        groups, ledgers, n = session.batches() if exact else [], [], 0
        for group in groups:
            ledgers += group
            n += group[0].n
        probed = self._sums.in_compiled_code() if session.compiled else set()
        refused = self._leave_out_or_refuse(ledgers, probed) if exact else {}
        passes = len(groups) or len(session.sizes)
        if not passes:
            raise self._no_passes(refused)
        unit, own_signal = 1.0, None
        unseen = unmeasured(session, parameters, ledgers, probed)
        if exact:
            squares = self._sums.of_samples(ledgers, passes)
            if not groups:
                n = sum(session.sizes)
            if self._ranks.world > 1:
                n, unseen = self._of_all_ranks(n, groups, unseen, probed)
        else:
            assert self.micro is not None
            squares, n, unit, own_signal = self.micro.collect(self._ranks.world, self.reduction)
        if n < 2:
            # The odd last batch of an epoch; stopping a run for it would be no help.
            warn_of_too_few(n, exact)
            return None, passes
        if unseen:
            self._refuse_unseen(unseen)
            squares = self._sums.of_samples(ledgers, passes)
        device = parameters.device
        signal = self._sums.of_gradients() if own_signal is None else own_signal.to(device)
        if exact and self._sums.unscaled:
            return None, passes
        captured = capturing()
        if captured and (self._ranks.world > 1 or self._scaling()):
            raise RuntimeError(_IN_A_GRAPH)
        if exact and not captured:
            self.prover.steps += 1
            written = [] if session.direction is None else session.rewritten + session.marks.written(session.parameters)
            proving = self._proving(ledgers, written)
            if proving is None:
                return None, passes
            fits = self._proves(ledgers, squares, n) if proving else self._is_possible(ledgers, squares, signal, n)
            if not fits:
                squares, signal = self._sums.of_samples(ledgers, passes), self._sums.of_gradients()
            if (proving or session.direction is not None) and not written:
                proved = proving and fits
                unusual = self.arrivals.unusual(session.parameters, groups, session.marks, proved=proved)
                if unusual := unusual or ([] if proving else session.marks.hooked):
                    self._doubt(unusual)
                    return None, passes
        elif not captured and not self._micro_batches_prove(n):
            return None, passes
        if self._ranks.world > 1 or self.scaler is not None:
            signal, squares = self._joined(on(device, signal), on(device, squares), own_sum=own_signal is not None)
        if exact and self.reduction == "mean":
            # Contributions to .grad add up to it; n times a contribution is a gradient whose mean is .grad.
            squares = scaled(squares, (n / self._ranks.world) ** 2)
        elif self.reduction == "sum":
            signal = scaled(signal, (self._ranks.world / (n * unit)) ** 2)
        independent = n if self._population is None else independent_count(n, unit, self._population)
        raw: tuple[Vector, Vector] | Tensor = signal, squares
        if captured or isinstance(signal, Tensor) or isinstance(squares, Tensor):
            raw = torch.stack([on(device, signal), on(device, squares)])
        step = Step(raw, n, unit, independent)
        if captured:
            self.captured = step
            return None, passes
        return step, passes

    def _no_passes(self, refused: dict[str, str]) -> Exception:
        """The error of a step in which no backward pass counted; refused: what was left out for it."""
        session = self._session
        if refused:
            reasons = by_reason(refused)
            self._nothing_left = f"no parameter that was used is left to measure:\n{reasons}\nUse mode='micro'."
        if self._nothing_left and session.last is not None:
            return UnsupportedError(self._nothing_left)
        if session.unread is not None:
            return UnsupportedError(session.unread)
        return no_backward(session, self._parameters)

    def _of_all_ranks(
        self, n: int, groups: list[list[Pass]], unseen: list[str], probed: set[str]
    ) -> tuple[int, list[str]]:
        """The samples of all ranks, and which gradients, `unseen` on this one, none of them measured.

        Ranks may hold batches of different size; that is known to none of them alone. They agree here on
        whether any of them doubts its gradients.
        """
        self._ranks.refuse_joined()
        session, names, differentiated = self._session, [], False
        if not self._ranks.sharded:
            unusual = self.arrivals.unusual(session.parameters, groups, session.marks, proved=False)
            names = unusual or session.marks.hooked
            differentiated = any(ledger.differentiated for group in groups for ledger in group)
        device, covered = self._parameters.device, self._parameters.covered
        total, doubts, puzzled = self._ranks.totals([n, int(differentiated or bool(names)), int(bool(unseen))], device)
        self._doubted = names if doubts else None
        if doubts:
            self.prover.again(EVERY)
        if puzzled:  # A head that one rank did not use, an expert that none of its tokens went to.
            here = probed.union(*(ledger.squares for group in groups for ledger in group))
            counted = self._ranks.totals([int(name in here) for name in covered], device)
            elsewhere = {name for name, ranks in zip(covered, counted, strict=True) if ranks}
            unseen = [name for name in unseen if name not in elsewhere]
        return total, unseen

    def _doubt(self, unusual: list[str]) -> None:
        """Gradients came otherwise than in steps that proved themselves: many have to now, for it may come again."""
        self.prover.again(EVERY)
        warn_of_doubt(unusual, came=True)

    def _scaling(self) -> bool:
        return self.scaler is not None and bool(self.scaler.is_enabled())

    def _leave_out_or_refuse(self, ledgers: list[Pass], probed: set[str]) -> dict[str, str]:
        """Raise, or leave out (strict=False), where samples cannot be told apart; returns what was left out."""
        if not ledgers and self._session.last is not None:
            ledgers = [self._session.last]
        refused = refused_uses(ledgers, self._parameters)
        for name in sorted(probed and probed & {name for ledger in ledgers for name in ledger.counts}):
            reason = "it is used in compiled code and outside of it, too; leave the compiled part uncompiled"
            refused.setdefault(name, reason)
        if refused and self._strict:
            raise cannot_be_told_apart(refused)
        if refused:
            self._leave_out(refused)
        return refused

    def _refuse_unseen(self, names: list[str]) -> None:
        """Raise, or leave out (strict=False), parameters with a gradient that nothing measured."""
        coverage = self._parameters.coverage
        if self._strict or not self._session.exact or any(name not in coverage for name in names):
            raise of_unmeasured(self._session, names, coverage)
        why = "its gradient came from no operation of the model's forward pass that was seen"
        self._leave_out(dict.fromkeys(names, why))

    def _leave_out(self, refused: dict[str, str]) -> None:
        self._parameters.leave_out(refused)
        self._session.take(self._parameters)
        listed = by_reason(refused, most=len(refused))
        warnings.warn(f"left out of Γ from here on:\n{listed}\nSee monitor.coverage.", stacklevel=6)

    def _joined(self, signal: Tensor, squares: Tensor, own_sum: bool) -> tuple[Tensor, Tensor]:
        """Add over ranks what each rank knows a part of, and take the loss scale out.

        `own_sum`: the signal is of a sum of scaled gradients, which scaler.unscale_ did not touch.
        """
        if self._ranks.sharded:
            squares, signal = self._ranks.add(torch.stack([squares, signal])).unbind()
        else:
            squares = self._ranks.add(squares)
        if self._scaling():
            inverse = 1.0 / self.scaler.get_scale() ** 2
            squares = squares * inverse
            if own_sum or not _unscaled(self.scaler):
                signal = signal * inverse
        return signal, squares

    def _proving(self, ledgers: list[Pass], written: list[str]) -> bool | None:
        """Whether this step is proved; None, with a warning, where it had to be and cannot be.

        written: parameters whose .grad was written to after the backward pass.
        """
        session = self._session
        differentiated, proving = False, bool(ledgers) or (session.directions is not None and bool(self._sums.probed()))
        for ledger in ledgers:
            proving = proving and ledger.directions is not None
            differentiated = differentiated or ledger.differentiated
        if self._doubted is not None and not proving:
            self._doubt(self._doubted)
            return None
        if session.direction is not None and (written or differentiated or session.marks.hooked):
            self.prover.again()  # what may change a gradient by its value does so now and then
            if not proving and (written or differentiated):
                warn_of_doubt(written)
                return None
        return proving

    def _proves(self, ledgers: list[Pass], squares: Vector, n: int) -> bool:
        """Whether what arrived in .grad is what the samples measured add up to.

        Where it is not, raises, or, with strict=False, leaves parameters out.
        """
        projections: Projections = {}
        dtypes: Dtypes = {}
        for ledger in ledgers:
            for name, values in ledger.projections.items():
                projections.setdefault(name, []).extend(values)
            for name, dtype in ledger.dtypes.items():
                dtypes[name] = max_eps(dtypes.get(name), dtype)
        for watcher in self._session.watchers:
            if watcher.ran and watcher.half:
                dtypes.update(dict.fromkeys(watcher.names.values(), torch.bfloat16))
        of_each = on(self._parameters.device, squares)
        return self._accepted(*self._differences(projections, of_each, dtypes, n), ledgers)

    def _micro_batches_prove(self, n: int) -> bool:
        """Whether micro-batches, n of all ranks, add up to .grad, where this step is proved; else raises.

        False, with a warning, where it had to be proved and cannot be.
        """
        self._ranks.refuse_joined()
        session, prover = self._session, self.prover
        proof = None if self.micro is None else self.micro.proof
        prover.steps += 1
        written = [] if session.direction is None else session.rewritten + session.marks.written(session.parameters)
        hooked = hooked_in_micro_mode(session.parameters)
        if written or hooked:
            prover.again()
            if proof is None:
                warn_of_doubt(written or hooked, came=not written)
                return False
        if proof is None:
            return True
        differences, factor = self._differences(proof.projections, proof.squares, {}, n)
        if differences:
            prover.again()
            raise unproved(differences, factor, differentiated=False, ranks=self._ranks)
        return True

    def _differences(self, projections: Projections, squares: Tensor, dtypes: Dtypes, n: int) -> Differences:
        """Parameters whose .grad is not what n contributions add up to, and the factor that all are off by, if any."""
        parameters, prover, probed = self._parameters, self.prover, self._sums.probed()
        zero = torch.zeros((), dtype=torch.float64, device=parameters.device)
        names = list(parameters.covered)
        measured = [
            probed[name].to(zero.device)
            if name in probed
            else sum((each.to(zero.device) for each in projections.get(name, [])), zero)
            for name in names
        ]
        table = self._ranks.add(torch.stack([torch.stack(measured) if measured else squares, squares]))
        unit = 1 / self._ranks.world
        if self.scaler is not None and self._scaling() and _unscaled(self.scaler):
            unit /= self.scaler.get_scale()
        gradients = {name: grad for name in names if (grad := parameters.chosen[name].grad) is not None}
        for name, grad in gradients.items():
            prover.direction(name, grad)
        sums = dict(zip(names, table[0] * unit, strict=True))
        of_each = dict(zip(names, table[1] * unit**2, strict=True))
        if self._ranks.sharded:  # compiled code has directions of its own, which are not to be cut
            gradients = {name: grad for name, grad in gradients.items() if name not in probed}
        dtypes = {name: dtype for name in names if (dtype := self._ranks.rounded(dtypes.get(name))) is not None}
        differences = prover.differences(sums, of_each, gradients, dtypes, n, on_waves=probed)
        return differences, prover.common_factor() if differences else None

    def _is_possible(self, ledgers: list[Pass], squares: Vector, signal: Vector, n: int) -> bool:
        """Whether samples can add up to .grad, for n contributions have ‖Σ c‖² ≤ n Σ‖c‖²; looked at on a CPU alone.

        Where they cannot, raises, or, with strict=False, leaves parameters out.
        """
        if self._ranks.world > 1 or self._ranks.sharded or (isinstance(signal, Tensor) and not signal.is_cpu):
            return True
        unscaled = self.scaler is not None and self._scaling() and _unscaled(self.scaler)
        most = n / self.scaler.get_scale() ** 2 if unscaled else float(n)
        if isinstance(signal, Tensor):
            signal = signal.tolist()
        rows = list(zip(signal, squares.tolist() if isinstance(squares, Tensor) else squares, strict=True))
        for norm, square in rows:
            if norm > most * square:
                break
        else:
            return True
        dtypes = {dtype for ledger in ledgers for dtype in ledger.dtypes.values()}
        dtypes |= {torch.bfloat16 for watcher in self._session.watchers if watcher.ran and watcher.half}
        parts = impossible(dict(zip(self._parameters.covered, rows, strict=True)), most, dtypes)
        return self._accepted(parts, None, ledgers)

    def _accepted(self, differences: dict[str, float], factor: float | None, ledgers: list[Pass]) -> bool:
        """Whether there are none between .grad and what was measured; else raises, or leaves the parameters out."""
        if not differences:
            return True
        self.prover.again()
        if self._strict:
            differentiated = any(ledger.differentiated for ledger in ledgers)
            raise unproved(differences, factor, differentiated=differentiated, ranks=self._ranks)
        why = "what arrived in .grad is not what the measured samples add up to (off by {:.1%} of it)"
        self._leave_out({name: why.format(difference) for name, difference in differences.items()})
        return False


def _unscaled(scaler: Any) -> bool:
    """Whether scaler.unscale_(optimizer) ran in this step."""
    return any(getattr(state.get("stage"), "name", "") == "UNSCALED" for state in scaler._per_optimizer_states.values())
