"""``Eigendistortion``: plenoptic's class, on this package's operators, with a certificate."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eigenexp import synthesis_files
from eigenexp.decompositions import (
    assemble,
    exact_spectrum,
    randomized_spectrum,
    residual_status,
)
from eigenexp.eigensolvers.base import Progress
from eigenexp.errors import InputError, InputTypeError
from eigenexp.operators import FisherOperator
from eigenexp.orthogonal_iteration import End, OrthogonalIteration, RitzPairs
from eigenexp.spectrum import PairStatus, Spectrum, StopReason
from eigenexp.synthesis_files import LoadWarning, examine_saved_synthesis
from eigenexp.validation import (
    check_count,
    check_model,
    remove_grad,
    set_seed,
    validate_image,
    validate_model,
)

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


class Eigendistortion:
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

    def __init__(self, image: Tensor, model: Callable[[Tensor], Any]) -> None:
        validate_image(image, no_batch=True)
        check_model(model, image)
        self._image = image.detach().clone(memory_format=torch.contiguous_format)
        self._model = model
        self._jacobian: Tensor | None = None
        self._eigendistortions: Tensor | None = None
        self._eigenvalues: Tensor | None = None
        self._eigenindex: Tensor | None = None
        self._spectrum: Spectrum | None = None
        self._operator: FisherOperator | None = None
        self._graph: tuple[Tensor, Tensor] | None = None
        self._solver: Any = None
        self._solver_kind: tuple[Any, ...] | None = None
        self._loaded = False

    # -- attributes ----------------------------------------------------------------------------

    @property
    def image(self) -> Tensor:
        """The picture, in the shape given."""
        return self._image

    @property
    def model(self) -> Callable[[Tensor], Any]:
        """The model."""
        return self._model

    @property
    def jacobian(self) -> Tensor | None:
        """``(m, n)``, or None until it is computed."""
        return self._jacobian

    @property
    def eigendistortions(self) -> Tensor | None:
        """``(k', *image.shape[1:])``, or None before ``synthesize``."""
        return self._eigendistortions

    @property
    def eigenvalues(self) -> Tensor | None:
        """``(k',)``, decreasing, or None before ``synthesize``."""
        return self._eigenvalues

    @property
    def eigenindex(self) -> Tensor | None:
        """``(k',)`` int64, or None before ``synthesize``."""
        return self._eigenindex

    @property
    def spectrum(self) -> Spectrum | None:
        """The pairs with their certificate; measured now (one product a pair) after a load."""
        if self._spectrum is None and self._eigendistortions is not None:
            self._spectrum = self._certify()
        return self._spectrum

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one distortion: ``(C, H, W)``, or ``(n,)`` for a 1-D picture."""
        return tuple(self._image.shape[1:]) if self._image.ndim > 1 else tuple(self._image.shape)

    @property
    def operator(self) -> FisherOperator:
        """F at the picture; linearised when first needed."""
        if self._operator is None:
            self._operator = FisherOperator(self._model, self._image)
        return self._operator

    @property
    def _image_flat(self) -> Tensor:
        """``(n, 1)``, the leaf of the graph that ends in ``_representation_flat``."""
        return self._connected()[0]

    @property
    def _representation_flat(self) -> Tensor:
        """``(m, 1)``, connected to ``_image_flat``."""
        return self._connected()[1]

    def _connected(self) -> tuple[Tensor, Tensor]:
        if self._graph is None:
            flat = self._image.detach().reshape(-1, 1).clone().requires_grad_()
            with torch.enable_grad():
                response = synthesis_files.flat_response(self._model(flat.view(self._image.shape)))
            self._graph = (flat, response.unsqueeze(1))
        return self._graph

    def __repr__(self) -> str:
        shown = getattr(self._model, "__name__", None) or repr(self._model).replace("\n", "\n  ")
        return (
            f"{type(self).__name__}(\n  image = {self._image.shape} ({self._image.dtype}),\n"
            f"  model = {shown},\n)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Graphs cannot be copied; they are made again when needed.
        return {**self.__dict__, "_operator": None, "_graph": None}

    # -- solving -------------------------------------------------------------------------------

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
        tol: float = 1e-4,
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
            A pair is called unconverged when ‖Fv − λv‖ exceeds ``tol · λmax``; solvers other than
            plenoptic's three stop by it.
        seed
            Of the start vectors; by default torch's own (see :func:`set_seed`). No global random
            state is changed.
        callback
            Called with a :class:`eigenexp.eigensolvers.Progress` after each iteration.
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
        n = self._image.numel()
        if method != "exact" or which is not None:
            check_count("k", k, 1, n)
        check_count("max_iter", max_iter, 1)
        check_count("p", p, 0)
        check_count("q", q, 0)
        if not stop_criterion >= 0:
            raise InputError(f"stop_criterion: expected at least 0, got {stop_criterion}")
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
        if self._jacobian is None:
            if self._image.numel() > 1e4:
                warnings.warn(
                    f"the dense Jacobian of {self._image.numel()} picture values takes time and "
                    "memory; expected at most 10000; use method='auto'",
                    stacklevel=2,
                )
            self._jacobian = self.operator.jacobian.to_dense().detach()
        return self._jacobian

    def _synthesize_exact(self, k: int, which: str | None, tol: float) -> None:
        m, n = self.operator.jacobian.shape
        if m * n > 1e6:
            warnings.warn(
                f"the dense Jacobian has {m} × {n} elements, above a million, and may exhaust "
                "memory; method='auto' needs none",
                stacklevel=3,
            )
        spectrum = exact_spectrum(self.compute_jacobian(), self.image_shape, tol)
        if which is not None:
            top, bottom = range(k), range(n - k, n)
            wanted = {"top": {*top}, "bottom": {*bottom}, "both": {*top, *bottom}}[which]
            spectrum = _take(spectrum, sorted(wanted))
        self._keep(spectrum)

    def _synthesize_sketch(
        self, k: int, p: int, q: int, seed: int, tol: float, which: str | None
    ) -> None:
        if which not in (None, "top"):
            raise InputError(f"which: expected 'top' for randomized_svd, got {which!r}")
        sketch = randomized_spectrum(self.operator, k, p, q, seed, tol)
        self._keep(sketch.spectrum)
        worst = float(sketch.spectrum.residuals.max())
        warnings.warn(
            f"randomized SVD is an approximation: estimated spectral error {sketch.error:.3g}, "
            f"largest residual ‖Fv − λv‖ = {worst:.3g}; raise p or q, or use method='auto'",
            stacklevel=3,
        )

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
        operator = self.operator
        kind = ("power", k, which)
        if restart or self._solver_kind != kind:
            self._solver = OrthogonalIteration(
                operator.shape[0], k, which, seed, operator.dtype, operator.device
            )
            self._solver_kind = kind
        iteration: OrthogonalIteration = self._solver
        try:
            for end in (iteration.top, iteration.bottom):
                if end is not None:
                    self._run(iteration, end, max_iter, criterion, tol, callback)
        except BaseException:
            self._keep_power(iteration, tol)
            raise
        self._keep_power(iteration, tol)
        self._warn_if_open()

    def _run(
        self,
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
            end.step(self.operator, shift)
            iteration.count(end)
            if callback is not None:
                callback(_progress(iteration, tol, "bottom" if end is iteration.bottom else "top"))

    def _keep_power(self, iteration: OrthogonalIteration, tol: float) -> None:
        ends, indices = _found(iteration)
        if ends:
            self._keep(
                assemble(
                    ends,
                    indices,
                    image_shape=self.image_shape,
                    scale=iteration.scale,
                    tol=tol,
                    num_products=iteration.num_products,
                    method="power",
                )
            )

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
        from eigenexp.eigensolvers import make_solver, multiply

        operator = self.operator
        ends = 2 if which == "both" else 1
        kind = (method, k, which, tuple(sorted(options.items())))
        if restart or self._solver_kind != kind or self._solver.settings.tol != tol:
            self._solver = make_solver(
                operator, method, k=k, which=which, tol=tol, seed=seed, **options
            )
            self._solver_kind = kind
        solver = self._solver
        budget = solver.num_products + max_iter * ends
        try:
            while not solver.done and solver.num_products < budget:
                request = solver.request
                solver.tell(*multiply(operator, request, solver.ask()))
                if callback is not None:
                    callback(solver.progress())
        finally:
            if solver.num_products > 0:
                self._keep(solver.result().reshape(self.image_shape))
        self._warn_if_open()

    # -- results -------------------------------------------------------------------------------

    def _keep(self, spectrum: Spectrum) -> None:
        """Set the attributes of the class from a spectrum."""
        self._spectrum = spectrum
        self._eigendistortions = spectrum.eigenvectors
        self._eigenvalues = spectrum.eigenvalues
        self._eigenindex = spectrum.eigenindex

    def _certify(self) -> Spectrum:
        """Measure the residuals of the pairs held: one product a pair."""
        vectors, values, index = self._eigendistortions, self._eigenvalues, self._eigenindex
        if vectors is None or values is None or index is None:
            raise InputError("spectrum: expected pairs to measure, got none; call synthesize()")
        columns = vectors.reshape(len(vectors), -1).T.contiguous()
        images, _ = self.operator.apply(columns)
        residuals = torch.linalg.vector_norm(images - columns * values, dim=0)
        scale = float(values.max())
        pairs = RitzPairs(values, columns, residuals)
        return Spectrum(
            eigenvalues=values,
            eigenvectors=vectors,
            eigenindex=index,
            residuals=residuals,
            error_bounds=residuals,
            status=residual_status(pairs, scale, 1e-4),
            stop_reason=StopReason.RUNNING,
            scale=scale,
            tol=1e-4,
            num_products=len(vectors),
            method="loaded",
        )

    def _warn_if_open(self) -> None:
        spectrum = self.spectrum
        if spectrum is None:
            return
        rows = [r for r in spectrum.rows() if r["status"] == PairStatus.UNCONVERGED.value]
        if rows:
            worst = max(rows, key=lambda row: row["residual"])
            warnings.warn(
                f"{len(rows)} of {len(spectrum)} pairs are not converged, the worst index "
                f"{worst['index']}: λ = {worst['eigenvalue']:.4g} with ‖Fv − λv‖ = "
                f"{worst['residual']:.3g} (λmax = {spectrum.scale:.4g}); call synthesize again to "
                "go on, with a larger max_iter, or use method='auto'",
                stacklevel=4,
            )

    # -- devices and files ---------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> None:
        """Move and cast picture, model and results, in place.

        Parameters
        ----------
        *args, **kwargs
            As for :meth:`torch.Tensor.to`: a device, a floating dtype, both, or a tensor to match.
            Integer tensors keep their dtype. The next ``synthesize`` runs there, and goes on where
            the last one stopped.

        Raises
        ------
        TypeError
            When the dtype is not floating.

        Warns
        -----
        UserWarning
            When the model has no ``to`` and stays as it is.
        """
        device, dtype = synthesis_files.parse_to(*args, **kwargs)
        mover = getattr(self._model, "to", None)
        if callable(mover):
            self._model = mover(*args, **kwargs)
        else:
            warnings.warn(
                "model: expected a to() method to move it by, got none; it stays as it is",
                stacklevel=2,
            )

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        self._image = move(self._image)
        for name in ("_jacobian", "_eigendistortions", "_eigenvalues", "_eigenindex"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else move(value))
        if self._spectrum is not None:
            self._spectrum = synthesis_files.map_spectrum(self._spectrum, move)
        if isinstance(self._solver, OrthogonalIteration):
            self._solver.to(device, dtype)
        else:
            self._solver, self._solver_kind = None, None
        self._operator, self._graph = None, None

    def save(self, file_path: str | os.PathLike[str]) -> None:
        """Write picture, results and the state to go on from to ``file_path``, whole or not at all.

        Tensors and plain containers only, in plenoptic's layout; the model itself is not saved,
        its name and its response at the picture are.

        Raises
        ------
        TypeError
            When an attribute added by the user cannot be stored so.
        OSError
            When the file cannot be written.
        """
        synthesis_files.write(self, file_path)

    def load(
        self,
        file_path: str | os.PathLike[str],
        map_location: Any = None,
        raise_on_checks: bool = True,
        tensor_equality_atol: float = 1e-8,
        tensor_equality_rtol: float = 1e-5,
        **pickle_load_args: Any,
    ) -> None:
        """Take over what :meth:`save`, or plenoptic 1.2 and later, wrote; nothing is executed.

        The object must be made from the same picture and model as the saved one and not be
        synthesized yet. When anything fails, it stays as it was.

        Parameters
        ----------
        file_path
            The file.
        map_location
            Device for the tensors, as for :func:`torch.load`.
        raise_on_checks
            False turns failed checks into a :class:`LoadWarning`, those of device and dtype and
            "already synthesized" apart. The picture is then the file's, the model the object's.
        tensor_equality_atol, tensor_equality_rtol
            Tolerances for equal picture and response.
        **pickle_load_args
            Passed to :func:`torch.load`; ``weights_only`` is always True.

        Raises
        ------
        ValueError
            When the file is no such file, or a check fails.
        """
        if self._eigenindex is not None:
            raise InputError(
                f"load: expected a {type(self).__name__} not synthesized yet, got one with "
                f"{len(self._eigenindex)} pairs; make a new one and load into that"
            )
        content = synthesis_files.read(file_path, map_location, pickle_load_args)
        synthesis_files.check(
            self, content, raise_on_checks, tensor_equality_atol, tensor_equality_rtol
        )
        synthesis_files.adopt(self, content)


def _take(spectrum: Spectrum, places: list[int]) -> Spectrum:
    """Return the pairs at ``places`` alone."""
    chosen = torch.tensor(places)
    return synthesis_files.map_spectrum(spectrum, lambda t: t[chosen.to(t.device)], places)


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
