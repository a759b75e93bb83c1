"""What the figures of distortions show, read back from rendered pixels."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eigenexp.errors import InputError
from eigenexp.plots import (
    distortion_figure,
    distortion_image,
    eigendistortion_imshow_all,
    plot_distortion,
)
from eigenexp.spectrum import PairStatus, Spectrum, StopReason

OK, DOUBT, OPEN = PairStatus.CONVERGED, PairStatus.UNVERIFIED, PairStatus.UNCONVERGED


def spectrum_of(vectors, index, values=None, status=None):
    vectors = torch.stack(vectors).to(torch.float64)
    vectors = vectors / vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.ndim - 1))
    k = len(vectors)
    values = torch.tensor(values or [1.0 / 4**i for i in range(k)], dtype=torch.float64)
    return Spectrum(
        eigenvalues=values,
        eigenvectors=vectors,
        eigenindex=torch.tensor(index),
        residuals=torch.zeros(k),
        error_bounds=torch.zeros(k),
        status=tuple(status or [OK] * k),
        stop_reason=StopReason.CONVERGED,
        scale=1.0,
        tol=1e-4,
        num_products=7,
    )


def render(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def shown(pixels, ax, row, column):
    """The rendered colour at the middle of an image's cell."""
    x, y = ax.transData.transform((column, row))
    return pixels[pixels.shape[0] - 1 - round(y), round(x)]


@pytest.fixture
def gray():
    image = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    image[0, 0, 0, 0], image[0, 0, 3, 3] = 0.0, 1.0
    spot = torch.zeros(1, 4, 4)
    spot[0, 1, 1] = 1.0
    dark = torch.zeros(1, 4, 4)
    dark[0, 2, 1], dark[0, 2, 2] = 1.0, -1.0
    return image, spectrum_of([spot, dark], [0, 15])


def test_gray_distortion_is_symmetric_about_mid_gray_and_sums_keep_the_picture_range(gray):
    image, spectrum = gray
    figure = distortion_figure(spectrum, image, scale=0.25)
    pixels = render(figure)
    picture, first, second, sum_first, sum_second = figure.axes
    assert shown(pixels, picture, 0, 0).tolist() == [0, 0, 0]
    assert shown(pixels, picture, 3, 3).tolist() == [255, 255, 255]
    assert shown(pixels, first, 1, 1).tolist() == [255] * 3
    assert shown(pixels, second, 2, 2).tolist() == [0] * 3
    assert abs(shown(pixels, first, 3, 0) - 128).max() <= 1
    assert abs(shown(pixels, sum_first, 1, 1) - 191).max() <= 1  # 0.5 + 0.25 of [0, 1]
    assert abs(shown(pixels, sum_second, 2, 2) - 82).max() <= 1  # 0.5 - 0.25/√2
    assert shown(pixels, sum_first, 0, 0).tolist() == [0, 0, 0]


def test_colour_sums_and_distortions(gray):
    image = torch.full((1, 3, 4, 4), 0.5)
    red = torch.zeros(3, 4, 4)
    red[0, 1, 1] = 1.0
    figure = distortion_figure(spectrum_of([red], [0]), image, scale=0.5)
    pixels = render(figure)
    _, alone, total = figure.axes
    assert abs(shown(pixels, alone, 1, 1) - [255, 127, 127]).max() <= 1
    assert abs(shown(pixels, alone, 0, 3) - 127).max() <= 1
    assert abs(shown(pixels, total, 1, 1) - [255, 127, 127]).max() <= 1


def test_picture_outside_the_unit_range_uses_its_own_range_in_gray_and_colour():
    for channels in (1, 3):
        image = torch.full((1, channels, 4, 4), 100.0)
        image[..., 0, 0], image[..., 3, 3] = 50.0, 150.0
        spot = torch.zeros(channels, 4, 4)
        spot[:, 1, 1] = 1.0
        figure = distortion_figure(spectrum_of([spot], [0]), image, scale=25.0 * channels**0.5)
        pixels = render(figure)
        assert abs(shown(pixels, figure.axes[0], 1, 2) - 127).max() <= 1
        assert abs(shown(pixels, figure.axes[2], 1, 1) - 191).max() <= 1


def test_many_channels_are_a_mosaic_in_reading_order_and_one_can_be_chosen():
    image = torch.zeros(1, 5, 3, 3)
    image[0, 4] = 1.0
    vector = torch.ones(5, 3, 3)
    figure = distortion_figure(spectrum_of([vector], [0]), image, scale=0.0)
    pixels = render(figure)
    assert shown(pixels, figure.axes[0], 5, 5).tolist() == [255] * 3  # second row, second column
    assert shown(pixels, figure.axes[0], 1, 1).tolist() == [0] * 3
    one = distortion_figure(spectrum_of([vector], [0]), image, scale=0.0, channel=4)
    assert shown(render(one), one.axes[0], 1, 1).tolist() == [255] * 3
    with pytest.raises(InputError, match="5 channels"):
        distortion_figure(spectrum_of([vector], [0]), image, channel=5)


def test_one_dimensional_pictures_are_lines():
    image = torch.linspace(0, 1, 9)
    figure = distortion_figure(spectrum_of([torch.eye(9)[4]], [0]), image, scale=0.5)
    alone, total = figure.axes[1:]
    assert np.allclose(alone.lines[-1].get_ydata(), np.eye(9)[4])
    assert np.allclose(total.lines[-1].get_ydata(), image.numpy() + 0.5 * np.eye(9)[4])
    blue = (render(figure) == [31, 119, 180]).all(axis=-1)  # matplotlib's C0 is in the picture
    assert blue.sum() > 100


def test_labels_tell_index_eigenvalue_scale_and_status_and_none_is_cut_off(gray):
    image, spectrum = gray
    spectrum = spectrum_of(
        list(spectrum.eigenvectors), [0, 15], values=[0.25, 1e-9], status=[OK, OPEN]
    )
    figure = distortion_figure(spectrum, image, scale=[2.0, 0.125], title="A title")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[1] == "index 0 (largest)\nλ = 0.25"
    assert titles[2] == "index 15 (smallest)\nλ = 1e-09, unconverged"
    assert titles[3] == "picture + 2 × e[0]"
    assert titles[4] == "picture + 0.125 × e[15]"
    render(figure)
    page = figure.bbox
    texts = [t for ax in figure.axes for t in (ax.title, ax.xaxis.label) if t.get_text()]
    boxes = [t.get_window_extent() for t in texts]
    for box in boxes:
        assert box.x0 >= page.x0
        assert box.x1 <= page.x1
        assert box.y0 >= page.y0
        assert box.y1 <= page.y1
    for i, a in enumerate(boxes):
        assert not any(a.overlaps(b) for b in boxes[i + 1 :])


def test_clipping_is_said(gray):
    image, spectrum = gray
    figure = distortion_figure(spectrum, image, scale=[0.1, 0.8])
    assert figure.axes[3].get_xlabel() == ""
    assert figure.axes[4].get_xlabel() == "12 % clipped"  # two of 16


def test_default_scale_is_five_percent_of_the_range_for_all(gray):
    image, spectrum = gray
    titles = [ax.get_title() for ax in distortion_figure(spectrum, image).axes[3:]]
    assert titles == ["picture + 0.2 × e[0]", "picture + 0.2 × e[15]"]  # 0.05 · sqrt(16)


def test_axes_passed_in_are_drawn_in_and_miscounts_refused(gray):
    image, spectrum = gray
    own = Figure(figsize=(8, 4))
    grid = own.subplots(1, 5)
    assert distortion_figure(spectrum, image, axes=grid) is own
    assert all(len(ax.images) == 1 for ax in grid)
    with pytest.raises(InputError, match="axes: expected 5"):
        distortion_figure(spectrum, image, axes=grid[:4])
    (single,) = Figure().subplots(1, 1, squeeze=False)[0]
    assert plot_distortion(spectrum, -1, ax=single) is single
    assert np.allclose(single.images[0].get_array(), spectrum.eigenvectors[1, 0])


def test_flat_vectors_take_the_shape_of_the_picture(gray):
    image, spectrum = gray
    flat = spectrum.reshape((16,))
    a, b = distortion_figure(spectrum, image), distortion_figure(flat, image)
    assert (render(a) == render(b)).all()
    with pytest.raises(InputError, match="16 values"):
        distortion_figure(spectrum, torch.zeros(1, 1, 5, 5))


def test_many_pairs_wrap_and_the_middle_is_left_out():
    vectors = [torch.eye(16)[i].reshape(1, 4, 4) for i in range(12)]
    spectrum = spectrum_of(vectors, [*range(6), *range(10, 16)])
    figure = distortion_figure(spectrum, torch.full((1, 1, 4, 4), 0.5))
    titles = [ax.get_title().split("\n")[0] for ax in figure.axes[1:11]]
    assert titles[:5] == ["index 0 (largest)", *(f"index {i}" for i in range(1, 5))]
    assert titles[5:] == [*(f"index {i}" for i in range(11, 15)), "index 15 (smallest)"]


def test_distortion_image_pixels():
    vector = torch.zeros(1, 2, 2)
    vector[0, 0, 0], vector[0, 1, 1] = 0.6, -0.3
    spectrum = spectrum_of([vector], [0])
    pixels = distortion_image(spectrum, 0, (1, 1, 2, 2))
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[255, 128], [128, 64]]
    assert distortion_image(spectrum, -1, (2, 2)).tolist() == pixels.tolist()
    assert distortion_image(spectrum, 0, (4,)).shape == (1, 4)
    colour = spectrum_of([torch.rand(3, 2, 5) - 0.5], [0])
    assert distortion_image(colour, 0).shape == (2, 5, 3)
    assert distortion_image(colour, 0, channel=1).shape == (2, 5)
    broken = spectrum_of([torch.zeros(1, 2, 2)], [0])  # 0/0 in the normalisation above
    assert distortion_image(broken, 0).tolist() == [[128, 128], [128, 128]]
    with pytest.raises(InputError, match="pair: expected"):
        distortion_image(spectrum, 1)
    with pytest.raises(InputError, match="shape of 4 values"):
        distortion_image(spectrum, 0, (3, 3))


class Synthesized:
    def __init__(self, image, vectors, index):
        self.image = image
        self.spectrum = None if vectors is None else spectrum_of(list(vectors), index)
        self.eigendistortions = vectors
        self.eigenvalues = None if vectors is None else torch.linspace(1, 0.25, len(vectors))
        self.eigenindex = None if vectors is None else torch.tensor(index)


def test_imshow_all_draws_the_two_rows_with_the_true_index(gray):
    image, spectrum = gray
    eig = Synthesized(image, spectrum.eigenvectors, [0, 15])
    figure = eigendistortion_imshow_all(eig, distortion_scale=0.25)
    pixels = render(figure)
    _, top, bottom, sum_top, _ = figure.axes
    assert top.get_title() == "eigendistortion 0\nλ = 1"
    assert bottom.get_title() == "eigendistortion 15\nλ = 0.25"
    assert figure.get_suptitle() == "Eigendistortions"
    assert shown(pixels, top, 1, 1).tolist() == [255] * 3
    assert abs(shown(pixels, sum_top, 1, 1) - 191).max() <= 1


def test_imshow_all_processing_channels_and_errors(gray):
    image, spectrum = gray
    eig = Synthesized(image, spectrum.eigenvectors, [0, 15])
    figure = eigendistortion_imshow_all(
        eig, 0, process_image=lambda x: 1 - x, process_distortion=lambda x: x * 0 + 1
    )
    pixels = render(figure)
    assert shown(pixels, figure.axes[0], 0, 0).tolist() == [255] * 3
    assert shown(pixels, figure.axes[1], 3, 0).tolist() == [255] * 3
    with pytest.raises(InputError, match="expected one number or 2"):
        eigendistortion_imshow_all(eig, distortion_scale=[1.0])
    with pytest.raises(InputError, match="eigenindex: expected"):
        eigendistortion_imshow_all(eig, [0, 2])
    with pytest.raises(InputError, match="synthesize"):
        eigendistortion_imshow_all(Synthesized(image, None, None))


def test_imshow_all_after_top_only_results():
    image = torch.rand(1, 3, 4, 4)
    eig = Synthesized(image, torch.eye(48)[:3].reshape(3, 3, 4, 4), [0, 1, 2])
    titles = [ax.get_title().split("\n")[0] for ax in eigendistortion_imshow_all(eig).axes[1:3]]
    assert titles == ["eigendistortion 0", "eigendistortion 2"]
    with pytest.raises(InputError, match=r"were found \(0, 1, 2; n = 48\), got -1"):
        eigendistortion_imshow_all(eig, [0, -1])
    single = Synthesized(image, torch.eye(48)[:1].reshape(1, 3, 4, 4), [0])
    assert len(eigendistortion_imshow_all(single).axes) == 3
    one = eigendistortion_imshow_all(eig, 0, channel_idx=2)
    assert one.axes[0].images[0].get_array().shape == (4, 4)


def test_imshow_all_takes_indices_of_the_whole_spectrum(gray):
    image, spectrum = gray
    eig = Synthesized(image, spectrum.eigenvectors, [0, 15])
    for wanted in (15, -1, [15], torch.tensor([15]), eig.eigenindex[-1]):
        top = eigendistortion_imshow_all(eig, wanted).axes[1]
        assert top.get_title() == "eigendistortion 15\nλ = 0.25"
    with pytest.raises(InputError, match="got 1"):
        eigendistortion_imshow_all(eig, 1)


def test_imshow_all_has_plenoptics_default_and_takes_its_arguments(gray):
    theirs = pytest.importorskip("plenoptic").plot.eigendistortion_imshow_all
    parameters = inspect.signature(eigendistortion_imshow_all).parameters
    for name, parameter in inspect.signature(theirs).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            assert name in parameters
    assert tuple(parameters["eigenindex"].default) == (0, -1)
    image, spectrum = gray
    eig = Synthesized(image, spectrum.eigenvectors, [0, 15])
    figure = eigendistortion_imshow_all(
        eig, cmap="viridis", vmin=0.0, vmax=2.0, zoom=2, suptitle=None, as_rgb=False,
        title=["x", "top", "bottom", "x + top", "x + bottom"], interpolation="bilinear",
    )  # fmt: skip
    assert [ax.get_title() for ax in figure.axes] == ["x", "top", "bottom", "x + top", "x + bottom"]
    drawn = figure.axes[3].images[0]
    assert (drawn.get_cmap().name, drawn.get_clim()) == ("viridis", (0.0, 2.0))
    assert drawn.get_interpolation() == "bilinear"
    assert figure.get_suptitle() == ""
    with pytest.raises(InputError, match="title: expected one for all or 5"):
        eigendistortion_imshow_all(eig, title=["one"])


def test_channels_are_colours_where_asked():
    image = torch.rand(1, 3, 4, 4)
    eig = Synthesized(image, torch.eye(48)[:1].reshape(1, 3, 4, 4), [0])
    mosaic = eigendistortion_imshow_all(eig, 0, as_rgb=False).axes[0].images[0].get_array()
    assert mosaic.shape == (9, 9)
    two = Synthesized(torch.rand(1, 2, 4, 4), torch.eye(32)[:1].reshape(1, 2, 4, 4), [0])
    with pytest.raises(InputError, match="as_rgb: expected 3 or 4 channels"):
        eigendistortion_imshow_all(two, 0, as_rgb=True)


def test_a_distortion_of_the_class_is_plotted_by_its_index_in_the_whole_spectrum(gray):
    image, spectrum = gray
    eig = Synthesized(image, spectrum.eigenvectors, [0, 15])
    for i, place in ((0, 0), (15, 1), (-1, 1)):
        ax = plot_distortion(eig, i, title="mine", cmap="RdBu_r", vmin=-1, zoom=1.5)
        assert np.allclose(ax.images[0].get_array(), spectrum.eigenvectors[place, 0])
        assert ax.get_title() == "mine"
        assert ax.images[0].get_clim()[0] == -1
    added = plot_distortion(eig, 0, eig.image, scale=0.25, vmax=2)
    assert added.images[0].get_clim() == (0, 2)
    with pytest.raises(InputError, match="eigenindex: expected"):
        plot_distortion(eig, 3)
    with pytest.raises(InputError, match="call synthesize"):
        plot_distortion(Synthesized(image, None, None), 0)


def test_figures_leave_pyplot_alone():
    code = (
        "import sys, torch; from eigenexp.plots import sensitivity_figure, distortion_image\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from eigenexp.plots import convergence_figure\n"
        "convergence_figure({'products': [1], 'residuals': [[0.1]]})\n"
        "assert 'matplotlib.figure' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
