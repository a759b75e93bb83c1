"""The curves: what is drawn, at which values, with which labels."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from eigenexp.errors import InputError
from eigenexp.plots import convergence_figure, sensitivity, sensitivity_figure, spectrum_figure
from eigenexp.spectrum import PairStatus, Spectrum, StopReason

OK, DOUBT, OPEN = PairStatus.CONVERGED, PairStatus.UNVERIFIED, PairStatus.UNCONVERGED


def spectrum_of(values, index, status=None, vectors=None):
    k = len(values)
    return Spectrum(
        eigenvalues=torch.tensor(values, dtype=torch.float64),
        eigenvectors=torch.eye(100, dtype=torch.float64)[list(index)]
        if vectors is None
        else vectors,
        eigenindex=torch.tensor(index),
        residuals=torch.zeros(k),
        error_bounds=torch.zeros(k),
        status=tuple(status or [OK] * k),
        stop_reason=StopReason.CONVERGED,
        scale=max([1.0, *values]),
        tol=1e-4,
        num_products=7,
    )


def render(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def colour_at(figure, ax, x, y):
    pixels = render(figure)
    column, row = ax.transData.transform((x, y))
    return pixels[pixels.shape[0] - 1 - round(row), round(column)]


def rgb(name):
    return np.rint(255 * np.array(to_rgb(name))).astype(int)


def test_spectrum_points_sit_at_their_eigenvalue_in_the_colour_of_their_status():
    spectrum = spectrum_of([5.0, 1.0, 1e-3], [0, 1, 99], [OK, OK, OPEN])
    figure = spectrum_figure(spectrum, title="a title")
    ax = figure.axes[0]
    assert ax.get_yscale() == "log"
    assert ax.get_title() == "a title"
    assert abs(colour_at(figure, ax, 0, 5.0) - rgb("C0")).max() <= 2
    assert abs(colour_at(figure, ax, 2, 1e-3) - rgb("C3")).max() <= 40  # a cross, antialiased
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "99"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["converged", "unconverged"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([3.0, 2.0], "linear"), ([1.0, 0.0], "linear"), ([1.0, 1e-6, 0.0], "symlog"),
     ([0.0, 0.0], "linear"), ([1.0, 1e-9], "log")],
)  # fmt: skip
def test_spectrum_scale_fits_the_values(values, scale):
    figure = spectrum_figure(spectrum_of(values, range(len(values))))
    render(figure)
    assert figure.axes[0].get_yscale() == scale
    low, high = figure.axes[0].get_ylim()
    assert low <= min(values)
    assert high >= max(values)


def test_spectrum_needs_a_pair_and_draws_in_given_axes():
    ax = Figure().subplots()
    assert spectrum_figure(spectrum_of([1.0], [0]), ax=ax) is ax.figure
    with pytest.raises(InputError, match="at least one pair"):
        spectrum_figure(spectrum_of([], [], vectors=torch.zeros(0, 4)))


def test_convergence_curves_and_tolerance():
    history = {
        "products": [1, 2, 4],
        "residuals": [[None, None], [1e-2, 1e-1], [1e-6, 1e-3]],
        "tol": 1e-4,
        "eigenindex": [0, 99],
    }
    figure = convergence_figure(history)
    ax = figure.axes[0]
    first, second, tol = ax.lines
    assert first.get_xdata().tolist() == [2, 4]
    assert first.get_ydata().tolist() == [1e-2, 1e-6]
    assert second.get_label() == "index 99"
    assert list(tol.get_ydata()) == [1e-4, 1e-4]
    assert abs(colour_at(figure, ax, 4, 1e-6) - rgb("C0")).max() <= 60
    by_label = convergence_figure(
        {"products": [1, 2, 4], "residuals": {"a": [float("nan"), 1e-2, 1e-6]}}
    )
    assert by_label.axes[0].lines[0].get_label() == "a"
    assert by_label.axes[0].lines[0].get_ydata().tolist() == [1e-2, 1e-6]


def test_convergence_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="no products and no residuals"):
        convergence_figure({})
    with pytest.raises(InputError, match="expected 2 residuals of pair 0"):
        convergence_figure({"products": [1, 2], "residuals": [[0.1]]})


def test_sensitivity_follows_the_eigenvalue_for_a_linear_model_and_bends_for_another():
    matrix = torch.diag(torch.arange(4.0, 0.0, -1.0)).to(torch.float64)
    image, alphas = torch.rand(1, 4, dtype=torch.float64), [0.1, 1.0, 10.0]
    moved = sensitivity(lambda x: x @ matrix, image, torch.eye(4)[1], alphas)
    assert torch.allclose(moved, 3 * torch.tensor(alphas, dtype=torch.float64))
    bent = sensitivity(lambda x: torch.tanh(x @ matrix), image, torch.eye(4)[1], alphas)
    assert bent[2] < 0.1 * moved[2]
    several = sensitivity(lambda x: {"a": x, "b": [x][0]}, image, torch.eye(4)[0], alphas)
    assert torch.allclose(several, 2**0.5 * torch.tensor(alphas, dtype=torch.float64))
    with pytest.raises(InputError, match="expected 4 values"):
        sensitivity(lambda x: x, image, torch.zeros(3), alphas)


def test_sensitivity_figure_puts_dots_on_the_line_of_a_linear_model():
    matrix = torch.diag(torch.arange(4.0, 0.0, -1.0)).to(torch.float64)
    image = torch.rand(1, 4, dtype=torch.float64)
    vectors = torch.eye(4, dtype=torch.float64)
    spectrum = spectrum_of([16.0, 1.0], [0, 3], vectors=vectors[[0, 3]])
    figure = sensitivity_figure(lambda x: x @ matrix, image, spectrum, [0.5, 1.0, 2.0])
    dots, line = figure.axes[0].lines[:2]
    assert np.allclose(dots.get_ydata(), [2, 4, 8])
    assert np.allclose(line.get_ydata(), dots.get_ydata())
    assert abs(colour_at(figure, figure.axes[0], 1.0, 4.0) - rgb("C0")).max() <= 2
    assert abs(colour_at(figure, figure.axes[0], 1.0, 1.0) - rgb("C1")).max() <= 2
    with pytest.raises(InputError, match="positive distances"):
        sensitivity_figure(lambda x: x, image, spectrum, [0.0])
    with pytest.raises(InputError, match="pair: expected"):
        sensitivity_figure(lambda x: x, image, spectrum, pairs=[5])


def test_estimates_below_any_precision_leave_the_axes():
    history = {"products": [1, 2, 3], "residuals": [[1e-2], [1e-31], [1e-7]], "tol": 1e-4}
    assert convergence_figure(history).axes[0].get_ylim()[0] == 1e-16
    history["residuals"][1] = [1e-8]
    assert 1e-16 < convergence_figure(history).axes[0].get_ylim()[0] < 1e-8


def test_sensitivity_marks_the_rounding_of_the_response():
    image = torch.linspace(0.1, 0.9, 100).reshape(1, 1, 10, 10)
    spectrum = spectrum_of([1.0, 1e-14], [0, 99])

    def model(x):
        return x * torch.tensor([1.0] * 99 + [1e-7]).reshape(x.shape)

    lines = sensitivity_figure(model, image, spectrum, [1e-4, 1e-2, 1.0]).axes[0].lines
    floor = next(line for line in lines if line.get_label() == "rounding of f(x)")
    expected = torch.finfo(torch.float32).eps * float(model(image).norm())
    assert floor.get_ydata()[0] == pytest.approx(expected, rel=1e-5)
    above = sensitivity_figure(model, image, spectrum, [0.1, 1.0], pairs=[0]).axes[0].lines
    assert "rounding of f(x)" not in [line.get_label() for line in above]
