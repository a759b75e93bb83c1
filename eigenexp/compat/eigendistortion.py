"""``Eigendistortion``: plenoptic's class, on this package's operators, with a certificate."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eigenexp.compat.checks import LoadWarning
from eigenexp.compat.decompositions import (
    assemble,
    exact_spectrum,
    randomized_spectrum,
    sketch_products,
)
from eigenexp.compat.early_products import SKETCH
from eigenexp.compat.files import examine_saved_synthesis
from eigenexp.compat.orthogonal_iteration import End, OrthogonalIteration, RitzPairs
from eigenexp.compat.state import Search, map_spectrum
from eigenexp.compat.synthesis import Synthesis
from eigenexp.compat.validation import (
    check_count,
    remove_grad,
    set_seed,
    validate_image,
    validate_model,
)
from eigenexp.eigensolvers import Progress, make_solver, multiply
from eigenexp.eigensolvers.recasting import recast_solver, state_dtype
from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators import FisherLike
from eigenexp.spectrum import PairStatus, Spectrum, StopReason

__all__ = [
    "Eigendistortion",
    "LoadWarning",
    "examine_saved_synthesis",
    "remove_grad",
    "set_seed",
    "validate_image",
    "validate_model",
]

METHODS = ("power", "exact", "randomized_svd", "lanczos", "davidson", "auto")
OWN_METHODS = ("power", "exact", "randomized_svd")


class Eigendistortion(Synthesis):
    """The changes of a picture that a model feels most and least.

    Eigenvectors of the Fisher information F = JᵀJ, J the Jacobian of the model's response at the
    picture (Berardino, Laparra, Ballé and Simoncelli, NeurIPS 2017): among changes of one length,
    the first changes the response most, the last least. Same methods, attributes and checks as
    plenoptic's class of this name; ``docs/from-plenoptic.md`` lists where it differs on purpose.

    Parameters
    ----------
    image
        One picture: ``(1, C, H, W)``, another shape with a leading 1, or ``(n,)``; float32 or
        float64. It is copied.
    model
        From a picture to a tensor, or a tuple, list or mapping of tensors (their values are put
        end to end). Its parameters must be fixed: see :func:`remove_grad`.
    noise
        How the response varies, one of :mod:`eigenexp.noise`. By default independent Gaussian noise
        of standard deviation 1, F = JᵀJ, as plenoptic has it.
    perturbations
        Which changes are considered, of :mod:`eigenexp.perturbations`; by default all of them.

    Attributes
    ----------
    image
        The picture.
    model
        The model.
    jacobian
        ``(m, n)``, or None until ``compute_jacobian`` or ``method="exact"``.
    eigendistortions
        ``(k', *image.shape[1:])`` (``(k', n)`` for a 1-D picture), unit 2-norm, or None.
    eigenvalues
        ``(k',)``, decreasing, or None.
    eigenindex
        ``(k',)`` int64: place in the whole spectrum, 0 the largest, or None.
    spectrum
        The same pairs with residuals, bounds and status, or None.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        See :func:`validate_image` and :func:`validate_model`.

    Warns
    -----
    UserWarning
        See there.
    """

    def synthesize(
        self,
        method: str = "power",
        k: int = 1,
        max_iter: int = 1000,
        p: int = 5,
        q: int = 2,
        stop_criterion: float = 1e-7,
        *,
        which: str | None = None,
        tol: float | None = None,
        seed: int | None = None,
        callback: Callable[[Progress], Any] | None = None,
        restart: bool = False,
        **options: Any,
    ) -> None:
        """Find eigendistortions and set the attributes.

        Parameters
        ----------
        method
            ``"power"``: orthogonal iteration, ``k`` pairs at each end, one product an iteration.
            ``"exact"``: all n pairs from the dense Jacobian. ``"randomized_svd"``: the top ``k``
            from a random sketch. ``"lanczos"``, ``"davidson"``, ``"auto"``: ``k`` pairs at each end
            to ``tol``, verified to be the extremal ones (see :mod:`eigenexp.eigensolvers`);
            ``"auto"`` is the one to take when in doubt.
        k
            Pairs at each end.
        max_iter
            ``power``: iterations at each end. The other solvers: products at most, for one end.
        p, q
            ``randomized_svd``: vectors beyond ``k``, and extra products with F. More of either
            costs time and gains accuracy.
        stop_criterion
            ``power`` stops when the 2-norm of the change of the eigenvalues is at most this (times
            λmax where that is below 1).
        which
            ``"top"``, ``"bottom"`` or ``"both"``; by default what the method gives: all for
            ``exact``, the top for ``randomized_svd``, both for the others.
        tol
            A pair is called unconverged when ‖Fv − λv‖ exceeds ``tol · λmax``: 1e-3 by default
            for plenoptic's three methods, of which none stops by it; 1e-4 for the others, which do.
        seed
            Of the start vectors; by default torch's own (see :func:`set_seed`). No global random
            state is changed.
        callback
            Called with a :class:`eigenexp.eigensolvers.Progress` after each iteration; returning
            True ends the search (of one end, for ``power``) there.
        restart
            Start afresh. By default a call of the same kind (method, ``k``, ``which``) as the last
            one goes on where that one stopped.
        **options
            Further settings of ``lanczos``, ``davidson`` and ``auto``.

        Raises
        ------
        ValueError
            When an argument is out of range.
        KeyboardInterrupt
            On Ctrl-C (and likewise whatever ``callback`` raises), after the best pairs so far are
            in the attributes; the next call of the same kind goes on from there.

        Warns
        -----
        UserWarning
            When a pair is unconverged (with its residual and what to do); for ``exact`` above a
            million Jacobian elements; for ``randomized_svd`` with its estimated error.
        """
        if method not in METHODS:
            raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        n = self._order
        if method != "exact" or which is not None:
            check_count("k", k, 1, n)
        check_count("max_iter", max_iter, 1)
        check_count("p", p, 0)
        check_count("q", q, 0)
        if not stop_criterion >= 0:
            raise InputError(f"stop_criterion: expected at least 0, got {stop_criterion}")
        if tol is None:
            tol = 1e-3 if method in OWN_METHODS else 1e-4
        if not tol > 0:
            raise InputError(f"tol: expected a positive number, got {tol}")
        if which not in (None, "top", "bottom", "both"):
            raise InputError(f"which: expected 'top', 'bottom', 'both' or None, got {which!r}")
        if method in OWN_METHODS and options:
            raise InputTypeError(f"synthesize: unexpected arguments {sorted(options)} for {method}")
        start = torch.initial_seed() if seed is None else seed
        if method == "exact":
            self._synthesize_exact(k, which, tol)
        elif method == "randomized_svd":
            self._synthesize_sketch(k, p, q, start, tol, which)
        elif method == "power":
            self._synthesize_power(
                k, which or "both", max_iter, stop_criterion, tol, start, callback, restart
            )
        else:
            self._synthesize_solver(
                method, k, which or "both", max_iter, tol, start, callback, restart, options
            )

    def compute_jacobian(self) -> Tensor:
        """Return the Jacobian ``(m, n)``, computed at the first call and kept.

        Warns
        -----
        UserWarning
            When the picture has more than 10 000 values: the Jacobian is then long in coming.
        """
        jacobian = self._state.jacobian
        if jacobian is None:
            if self.image.numel() > 1e4:
                warnings.warn(
                    f"the dense Jacobian of {self.image.numel()} picture values takes time and "
                    "memory; expected at most 10000; use method='auto'",
                    stacklevel=2,
                )
            jacobian = self.operator.jacobian.to_dense().detach()
            self._state = replace(self._state, jacobian=jacobian)
        return jacobian

    def _synthesize_exact(self, k: int, which: str | None, tol: float) -> None:
        m, n = self.operator.jacobian.shape
        if m * n > 1e6:
            warnings.warn(
                f"the dense Jacobian has {m} × {n} elements, above a million, and may exhaust "
                "memory; method='auto' needs none",
                stacklevel=3,
            )
        spectrum = exact_spectrum(self.compute_jacobian(), (n,), tol)
        if which is not None:
            top, bottom = range(k), range(n - k, n)
            wanted = {"top": {*top}, "bottom": {*bottom}, "both": {*top, *bottom}}[which]
            spectrum = _take(spectrum, sorted(wanted))
        self._keep(self._pictured(spectrum))

    def _synthesize_sketch(
        self, k: int, p: int, q: int, seed: int, tol: float, which: str | None
    ) -> None:
        if which not in (None, "top"):
            raise InputError(f"which: expected 'top' for randomized_svd, got {which!r}")
        operator = self._products(sketch_products(k, p, q), SKETCH)
        sketch = randomized_spectrum(operator, k, p, q, seed, tol)
        self._keep(self._pictured(sketch.spectrum))
        worst = float(sketch.spectrum.residuals.max())
        warnings.warn(
            f"randomized SVD is an approximation: estimated spectral error {sketch.error:.3g}, "
            f"largest residual ‖Fv − λv‖ = {worst:.3g}; raise p or q, or use method='auto'",
            stacklevel=3,
        )

    def _search(self, kind: tuple[Any, ...]) -> Search | None:
        """Return where the last call stood, if it was of this kind."""
        search = self._state.search
        return search if search is not None and search.kind == kind else None

    def _synthesize_power(
        self,
        k: int,
        which: str,
        max_iter: int,
        criterion: float,
        tol: float,
        seed: int,
        callback: Callable[[Progress], Any] | None,
        restart: bool,
    ) -> None:
        operator = self._products(max_iter * k * (2 if which == "both" else 1))
        problem = operator.problem
        kind = ("power", k, which)
        search = None if restart else self._search(kind)
        if search is not None and isinstance(search.where, OrthogonalIteration):
            iteration = search.where
        else:
            iteration = OrthogonalIteration(
                problem.n, k, which, seed, problem.dtype, problem.device
            )
            self._state = replace(self._state, search=Search(kind, iteration))
        try:
            for end in (iteration.top, iteration.bottom):
                if end is not None:
                    self._run(operator, iteration, end, max_iter, criterion, tol, callback)
        except BaseException:
            self._keep_power(problem.rank_bound, iteration, tol)
            raise
        self._keep_power(problem.rank_bound, iteration, tol)
        # Orthogonal iteration verifies nothing: that its pairs are unverified is no news.
        self._warn_if_open(PairStatus.UNCONVERGED)

    def _run(
        self,
        operator: FisherLike,
        iteration: OrthogonalIteration,
        end: End,
        max_iter: int,
        criterion: float,
        tol: float,
        callback: Callable[[Progress], Any] | None,
    ) -> None:
        shift = iteration.scale if end is iteration.bottom else 0.0
        for _ in range(max_iter):
            if end.finished(criterion, iteration.scale):
                return
            end.step(operator, shift)
            iteration.count(end)
            phase = "bottom" if end is iteration.bottom else "top"
            if callback is not None and callback(_progress(iteration, tol, phase)) is True:
                return

    def _keep_power(self, rank_bound: int, iteration: OrthogonalIteration, tol: float) -> None:
        ends, indices = _found(iteration)
        if ends:
            spectrum = assemble(
                ends,
                indices,
                image_shape=(iteration.n,),
                rank_bound=rank_bound,
                scale=iteration.scale,
                tol=tol,
                num_products=iteration.num_products,
                method="power",
            )
            self._keep(self._pictured(spectrum))

    def _synthesize_solver(
        self,
        method: str,
        k: int,
        which: str,
        max_iter: int,
        tol: float,
        seed: int,
        callback: Callable[[Progress], Any] | None,
        restart: bool,
        options: dict[str, Any],
    ) -> None:
        operator = self.operator
        kind = (method, k, which, tuple(sorted(options.items())))
        settings = {"k": k, "which": which, "tol": tol, "seed": seed, **options}
        search = None if restart else self._search(kind)
        state = None if search is None else search.state()
        if state is not None and state_dtype(state) != operator.dtype:  # after a cast
            solver = recast_solver(operator, {"method": method, **settings}, state)
        else:
            solver = make_solver(operator, method, **settings)
            if state is not None:
                solver.load_state_dict(state)
        self._state = replace(self._state, search=Search(kind, solver))
        budget = solver.num_products + max_iter * (2 if which == "both" else 1)
        try:
            while not solver.done and solver.num_products < budget:
                block = solver.ask()
                solver.tell(*multiply(operator, solver.request, block))
                if callback is not None and callback(solver.progress()) is True:
                    break
        finally:
            if len(solver.progress().eigenvalues):
                self._keep(solver.result().reshape(self.image_shape))
        self._warn_if_open(PairStatus.UNCONVERGED, PairStatus.UNVERIFIED)

    def _warn_if_open(self, *doubtful: PairStatus) -> None:
        spectrum = self.spectrum
        if spectrum is None:
            return
        rows = [row for row in spectrum.rows() if row["status"] in doubtful]
        if rows:
            worst = max(rows, key=lambda row: row["residual"])
            what = "not converged" if PairStatus.UNCONVERGED in spectrum.status else "not verified"
            warnings.warn(
                f"{len(rows)} of {len(spectrum)} pairs are {what}, the worst index "
                f"{worst['index']}: λ = {worst['known']} with ‖Fv − λv‖ = "
                f"{worst['residual']:.3g} (λmax = {spectrum.scale:.4g}); {_remedy(spectrum)}",
                stacklevel=4,
            )


def _remedy(spectrum: Spectrum) -> str:
    if spectrum.method == "power":
        return (
            "call synthesize again to go on, with a larger max_iter and a smaller stop_criterion, "
            "or use method='auto'"
        )
    if spectrum.stop_reason is StopReason.RUNNING:
        return "call synthesize again to go on"
    return spectrum.stop_message


def _take(spectrum: Spectrum, places: list[int]) -> Spectrum:
    """Return the pairs at ``places`` alone."""
    chosen = torch.tensor(places)
    return map_spectrum(spectrum, lambda t: t[chosen.to(t.device)], places)


def _found(iteration: OrthogonalIteration) -> tuple[list[RitzPairs], list[Tensor]]:
    """Return the ends measured so far, top first, with their places in the whole spectrum."""
    n, k = iteration.n, iteration.k
    found: list[tuple[RitzPairs, Tensor]] = []
    top, bottom = iteration.top.pairs, None
    if iteration.bottom is not None:
        bottom = iteration.bottom.pairs
    if top is not None and iteration.which != "bottom":
        found.append((top, torch.arange(k)))
    if bottom is not None:
        found.append((bottom, torch.arange(n - k, n)))
    return [pairs for pairs, _ in found], [index for _, index in found]


def _progress(iteration: OrthogonalIteration, tol: float, phase: str) -> Progress:
    ends, indices = _found(iteration)
    nothing = torch.zeros(0)
    return Progress(
        eigenvalues=torch.cat([e.values for e in ends]) if ends else nothing,
        residuals=torch.cat([e.residuals for e in ends]) if ends else nothing,
        eigenindex=torch.cat(indices) if ends else nothing.long(),
        scale=iteration.scale,
        tol=tol,
        num_products=iteration.num_products,
        phase=phase,
    )
