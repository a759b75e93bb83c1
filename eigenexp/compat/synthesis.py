"""The state of an ``Eigendistortion``: picture, model, results, their moves and their files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eigenexp.compat import files as synthesis_files
from eigenexp.compat.checks import Owner, check
from eigenexp.compat.decompositions import measured_spectrum, residual_status
from eigenexp.compat.early_products import SHORT_CALL, early_products
from eigenexp.compat.orthogonal_iteration import RitzPairs
from eigenexp.compat.state import State
from eigenexp.compat.validation import check_model, validate_image
from eigenexp.errors import InputError, InputTypeError, ModelError
from eigenexp.operators import FisherLike, FisherOperator
from eigenexp.operators.noise import Noise
from eigenexp.operators.noise.gaussian import noise_or_default
from eigenexp.operators.perturbations import Everything, Perturbations
from eigenexp.operators.perturbations.base import perturbations_or_default
from eigenexp.operators.responses import response_values
from eigenexp.spectrum import Spectrum, StopReason

__all__ = ["Synthesis"]

FEW_RESPONSES = 16  # so many rows of J are sooner computed than a tape is recorded


class Synthesis:
    """A picture, a model, and the eigenpairs found for them so far.

    See :class:`eigenexp.Eigendistortion`, which finds them.
    """

    def __init__(
        self,
        image: Tensor,
        model: Callable[[Tensor], Any],
        *,
        noise: Noise | None = None,
        perturbations: Perturbations | None = None,
    ) -> None:
        self._perturbations = perturbations_or_default(perturbations)
        self._noise = noise_or_default(noise)
        validate_image(image, no_batch=True)
        self._num_responses = check_model(model, image)
        self._model = model
        self._state = State(image.detach().clone(memory_format=torch.contiguous_format))
        self._operator: FisherOperator | None = None
        self._graph: tuple[Tensor, Tensor] | None = None

    # -- attributes ----------------------------------------------------------------------------

    @property
    def image(self) -> Tensor:
        """The picture, in the shape given."""
        return self._state.image

    @property
    def model(self) -> Callable[[Tensor], Any]:
        """The model."""
        return self._model

    @property
    def noise(self) -> Noise:
        """How the response varies; F = JᵀJ for Gaussian noise of standard deviation 1."""
        return self._noise

    @property
    def perturbations(self) -> Perturbations:
        """Which changes are considered."""
        return self._perturbations

    @property
    def jacobian(self) -> Tensor | None:
        """``(m, n)``, or None until it is computed; W J where there is a noise of factor W."""
        return self._state.jacobian

    @property
    def eigendistortions(self) -> Tensor | None:
        """``(k', *image.shape[1:])``, or None before ``synthesize``."""
        return self._state.eigendistortions

    @property
    def eigenvalues(self) -> Tensor | None:
        """``(k',)``, decreasing, or None before ``synthesize``."""
        return self._state.eigenvalues

    @property
    def eigenindex(self) -> Tensor | None:
        """``(k',)`` int64, or None before ``synthesize``."""
        return self._state.eigenindex

    @property
    def spectrum(self) -> Spectrum | None:
        """The pairs with their certificate; measured now (one product a pair) after a load."""
        if self._state.spectrum is None and self._state.eigendistortions is not None:
            self._state = replace(self._state, spectrum=self._certify())
        return self._state.spectrum

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one distortion: ``(C, H, W)``, or ``(n,)`` for a 1-D picture."""
        return self._state.image_shape

    @property
    def operator(self) -> FisherOperator:
        """F at the picture; linearised when first needed."""
        if self._operator is None:
            self._operator = _linearise(
                self._model, self.image, self._num_responses, self._measured
            )
        return self._operator

    def _products(self, planned: int, short: int = SHORT_CALL) -> FisherLike:
        """F for a call that plans so many products."""
        if self._num_responses <= FEW_RESPONSES:
            return self.operator
        return early_products(
            self._model, self.image, planned, lambda: self.operator, short, self._measured
        )

    @property
    def _measured(self) -> dict[str, Any]:
        """What F is of, beside model and picture, as operators take it."""
        return {"noise": self._noise, "perturbations": self._perturbations}

    @property
    def _told(self) -> dict[str, str]:
        return {name: str(value) for name, value in self._measured.items()}

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
            flat = self.image.detach().reshape(-1, 1).clone().requires_grad_()
            with torch.enable_grad():
                response = response_values(self._model(flat.view(self.image.shape)))
            self._graph = (flat, response.unsqueeze(1))
        return self._graph

    def __repr__(self) -> str:
        shown = getattr(self._model, "__name__", None) or repr(self._model).replace("\n", "\n  ")
        return (
            f"{type(self).__name__}(\n  image = {self.image.shape} ({self.image.dtype}),\n"
            f"  model = {shown},\n)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Graphs cannot be copied; they are made again when needed.
        return {**self.__dict__, "_operator": None, "_graph": None}

    # -- results -------------------------------------------------------------------------------

    def _keep(self, spectrum: Spectrum) -> None:
        """Set the attributes of the class from a spectrum."""
        self._state = self._state.with_pairs(spectrum)

    def _pictured(self, spectrum: Spectrum) -> Spectrum:
        """Return a spectrum whose vectors are the operator's as one of pictures."""
        coordinates = self.operator.coordinates
        if coordinates is None:
            return spectrum.reshape(self.image_shape)
        columns = spectrum.eigenvectors.flatten(1).mT
        pictures = coordinates.pictures(columns).reshape(len(spectrum), *self.image_shape)
        return replace(spectrum, eigenvectors=pictures, dimension=coordinates.size)

    @property
    def _order(self) -> int:
        """Dimension of what is considered."""
        if isinstance(self._perturbations, Everything):
            return self.image.numel()
        return self.operator.shape[0]

    def _certify(self) -> Spectrum:
        """Measure the residuals of the pairs held: one product a pair."""
        vectors, values, index = self.eigendistortions, self.eigenvalues, self.eigenindex
        if vectors is None or values is None or index is None:
            raise InputError("spectrum: expected pairs to measure, got none; call synthesize()")
        columns = vectors.reshape(len(vectors), -1).T.contiguous()
        coordinates = self.operator.coordinates
        if coordinates is not None:
            columns = coordinates.coordinates(columns)
        images, _ = self.operator.apply(columns)
        residuals = torch.linalg.vector_norm(images - columns * values, dim=0)
        scale = float(values.max())
        pairs = RitzPairs(values, columns, residuals)
        return measured_spectrum(
            pairs,
            index,
            vectors,
            status=residual_status(pairs, index, self.operator.rank_bound, scale, 1e-3),
            stop_reason=StopReason.RUNNING,
            scale=scale,
            tol=1e-3,
            num_products=len(vectors),
            method="loaded",
            dimension=None if coordinates is None else coordinates.size,
        )

    # -- devices and files ---------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> None:
        """Move and cast picture, model and results, in place.

        Parameters
        ----------
        *args, **kwargs
            As for :meth:`torch.Tensor.to`: a device, a floating dtype, both, or a tensor to match.
            Integer tensors keep their dtype. The next ``synthesize`` runs there, and goes on where
            the last one stopped; after a cast the search of ``lanczos``, ``davidson`` and ``auto``
            begins anew, from the vectors found where the method takes several.

        Raises
        ------
        TypeError
            When the dtype is not floating.

        Warns
        -----
        UserWarning
            When the model has no ``to`` and stays as it is.
        """
        device, dtype = _parse_to(*args, **kwargs)
        mover = getattr(self._model, "to", None)
        if callable(mover):
            self._model = mover(*args, **kwargs)
        else:
            warnings.warn(
                "model: expected a to() method to move it by, got none; it stays as it is",
                stacklevel=2,
            )

        self._state = self._state.moved(device, dtype)
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
        synthesis_files.write(
            file_path,
            self._state,
            name=synthesis_files.object_name(self),
            model=self._model,
            measured=self._told,
            extras=self._added_attributes(),
        )

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
        if self.eigenindex is not None:
            raise InputError(
                "load can only be called with a just-initialized object: expected a "
                f"{type(self).__name__} not synthesized yet, got one with {len(self.eigenindex)} "
                "pairs; make a new one and load into that"
            )
        content = synthesis_files.read(file_path, map_location, pickle_load_args)
        extras = self._added_attributes()
        name = synthesis_files.object_name(self)
        owner = Owner(name, self.image, self._model, extras, self._told)
        check(owner, content, raise_on_checks, tensor_equality_atol, tensor_equality_rtol)
        self._state = content.state
        self._operator, self._graph = None, None
        # What the object lacks is ignored: a file must not put names of its choice in it.
        vars(self).update({k: v for k, v in content.extras.items() if k in extras})

    def _added_attributes(self) -> dict[str, Any]:
        """Return the attributes somebody added to the object."""
        known = {"_num_responses", "_model", "_noise", "_perturbations", "_state"}
        known |= {"_operator", "_graph", *synthesis_files.KEYS}
        return {key: value for key, value in vars(self).items() if key not in known}


def _parse_to(*args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None]:
    """Return device and dtype of the arguments of ``.to``; refuse dtypes that are not floating."""
    known: dict[str, Any] = {**kwargs}
    device, dtype = known.get("device"), known.get("dtype")
    for value in (*args, known.get("tensor"), known.get("other")):
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | torch.device) or (
            isinstance(value, int) and not isinstance(value, bool)
        ):
            device = value
    if dtype is not None and not dtype.is_floating_point:
        raise InputTypeError(f"to: expected a floating dtype, got {dtype}; use torch.float32")
    return (None if device is None else torch.device(device)), dtype


def _linearise(
    model: Callable[[Tensor], Any], image: Tensor, num_responses: int, measured: dict[str, Any]
) -> FisherOperator:
    """Return F; a zero one is an answer here (every eigenvalue is 0), said in a warning."""
    route = "rows" if num_responses <= FEW_RESPONSES else "auto"
    try:
        return FisherOperator(model, image, route=route, **measured)
    except ModelError:
        operator = FisherOperator(model, image, check=False, **measured)
        m, n = operator.jacobian.shape
        drawn = torch.Generator().manual_seed(0)
        forward = torch.randn(n, 1, generator=drawn, dtype=torch.float64).to(image)
        backward = torch.randn(m, 1, generator=drawn, dtype=torch.float64).to(image)
        jacobian = operator.jacobian
        if jacobian.matmat(forward).any() or jacobian.rmatmat(backward).any():
            raise
        warnings.warn(
            "model: expected a response that changes with the picture, got a zero Jacobian; every "
            "eigenvalue is 0",
            stacklevel=2,
        )
        return operator
