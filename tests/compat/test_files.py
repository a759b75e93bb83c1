"""Saving and loading: our files, plenoptic's, and files that are neither."""

import io
import os
import pickle
import warnings

import pytest
import torch
from torch import nn

from eigenexp import Eigendistortion, LoadWarning, examine_saved_synthesis
from tests.compat.models import Smooth, diagonal, oracle, picture


@pytest.fixture
def image():
    return picture(1, 1, 6, 6)


@pytest.fixture
def saved(image, tmp_path):
    eig = Eigendistortion(image, Smooth())
    eig.synthesize("exact")
    eig.save(tmp_path / "saved.pt")
    return eig, tmp_path / "saved.pt"


@pytest.mark.parametrize("method", ["power", "exact", "randomized_svd"])
def test_round_trip(method, image, tmp_path):
    eig = Eigendistortion(image, Smooth())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        eig.synthesize(method, max_iter=20, k=2)
    eig.save(tmp_path / "a.pt")
    other = Eigendistortion(image, Smooth())
    assert other.load(tmp_path / "a.pt") is None
    for name in ("eigendistortions", "eigenvalues", "eigenindex", "image"):
        assert torch.equal(getattr(other, name), getattr(eig, name))
    assert (other.jacobian is None) == (method != "exact")
    for name in ("residuals", "error_bounds", "eigenvectors"):
        assert torch.equal(getattr(other.spectrum, name), getattr(eig.spectrum, name))
    assert other.spectrum.status == eig.spectrum.status
    assert other.spectrum.num_products == eig.spectrum.num_products


def test_an_object_not_yet_synthesized_can_be_saved_and_a_buffer_written_to(image):
    buffer = io.BytesIO()
    Eigendistortion(image, Smooth()).save(buffer)
    buffer.seek(0)
    other = Eigendistortion(image, Smooth())
    other.load(buffer)
    assert other.eigenvalues is None


def test_load_needs_a_fresh_object_whatever_raise_on_checks_says(saved):
    eig, path = saved
    for strict in (True, False):
        with pytest.raises(ValueError, match="not synthesized yet"):
            eig.load(path, raise_on_checks=strict)


class Other(nn.Module):
    """The same response under another name, shape or precision."""

    def __init__(self, change):
        super().__init__()
        self.change, self.inner = change, Smooth()
        self.eval()

    def forward(self, x):
        return self.change(self.inner(x))


def same(x):
    return x


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda x: Eigendistortion(x[..., :5, :5], Smooth()), ["image have different shape"]),
        (lambda x: Eigendistortion(1 - x, Smooth()), ["image have different values"]),
        (lambda x: Eigendistortion(x, Other(same)), ["model have different names"]),
        (lambda x: Eigendistortion(x, Other(lambda y: 2 * y)),
         ["model output have different values", "model have different names"]),
        (lambda x: Eigendistortion(x, Other(lambda y: y.flatten())),
         ["model output have different shape", "model have different names"]),
    ],
    ids=["shape", "values", "name", "response", "response shape"],
)  # fmt: skip
def test_checks_raise_in_order_or_warn(make, texts, saved, image):
    eig, path = saved
    with pytest.raises(ValueError, match=texts[0]):
        make(image).load(path)
    other = make(image)
    model = other.model
    with pytest.warns(LoadWarning) as record:
        other.load(path, raise_on_checks=False)
    assert len(record) == len(texts)
    for warning, text in zip(record, texts, strict=True):
        assert text in str(warning.message)
        assert warning.filename == __file__
    assert torch.equal(other.image, image)  # the picture is the file's
    assert other.model is model  # the model the object's
    assert torch.equal(other.eigenvalues, eig.eigenvalues)


def test_dtype_raises_always(saved, image):
    _, path = saved
    for strict in (True, False):
        other = Eigendistortion(image.float(), Smooth(dtype=torch.float32))
        with pytest.raises(ValueError, match="float32"):
            other.load(path, raise_on_checks=strict)
        assert other.eigenvalues is None


def test_tolerances(saved, image):
    _, path = saved
    other = Eigendistortion(image * (1 - 1e-6), Smooth())
    with pytest.raises(ValueError, match="image have different values"):
        other.load(path, tensor_equality_rtol=1e-8)
    other.load(path, tensor_equality_rtol=1e-4)


def test_attributes_added_on_one_side(saved, image, tmp_path):
    eig, path = saved
    other = Eigendistortion(image, Smooth())
    other.note = "mine"
    with pytest.raises(
        ValueError,
        match=r"^Initialized object has 1 attribute\(s\) not present in the saved one.*note",
    ):
        other.load(path)
    eig.note = "theirs"
    eig.save(tmp_path / "note.pt")
    fresh = Eigendistortion(image, Smooth())
    with pytest.raises(
        ValueError, match=r"^Saved object has 1 attribute\(s\) not present in the init.*note"
    ):
        fresh.load(tmp_path / "note.pt")
    with pytest.warns(LoadWarning, match="note"):
        fresh.load(tmp_path / "note.pt", raise_on_checks=False)
    assert not hasattr(fresh, "note")
    other.load(tmp_path / "note.pt")
    assert other.note == "theirs"


def test_an_attribute_that_is_no_plain_value_is_refused_before_writing(image, tmp_path):
    eig = Eigendistortion(image, Smooth())
    eig.helper = Smooth()
    with pytest.raises(TypeError, match="helper"):
        eig.save(tmp_path / "x.pt")
    assert os.listdir(tmp_path) == []


def test_a_subclass_is_another_type(saved, image):
    _, path = saved

    class Mine(Eigendistortion):
        pass

    with pytest.raises(ValueError, match=r"^Saved object was a eigenexp.*expected a saved .*Mine"):
        Mine(image, Smooth()).load(path)


# -- plenoptic's files -------------------------------------------------------------------------


THEIRS = [("power", 1), ("power", 3), ("exact", 1), ("randomized_svd", 1), ("randomized_svd", 4)]


@pytest.mark.parametrize(("method", "k"), THEIRS)
def test_files_of_plenoptic_load(method, k, image, tmp_path):
    po = pytest.importorskip("plenoptic")
    if method == "randomized_svd":
        image = image.float()  # their sketch is float32 whatever the picture
    theirs = po.Eigendistortion(image, Smooth(dtype=image.dtype))
    po.set_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs.synthesize(method, k=k, max_iter=300)
    theirs.save(tmp_path / "theirs.pt")
    ours = Eigendistortion(image, Smooth(dtype=image.dtype))
    ours.load(tmp_path / "theirs.pt")
    values = theirs.eigenvalues.reshape(-1).sort(descending=True).values
    assert torch.equal(ours.eigenvalues, values)
    assert torch.equal(ours.eigenindex, theirs.eigenindex)
    assert ours.eigendistortions.shape == theirs.eigendistortions.shape
    fisher = torch.autograd.functional.jacobian(lambda x: ours.model(x).reshape(-1), image)
    fisher = fisher.reshape(len(fisher), -1)
    for value, vector in zip(ours.eigenvalues, ours.eigendistortions, strict=True):
        measured = (fisher @ vector.reshape(-1)).square().sum()
        assert float(measured) == pytest.approx(float(value), rel=1e-2, abs=1e-6)
    assert len(ours.spectrum.residuals) == len(values)


def test_an_index_of_floats_is_read_as_integers(image, tmp_path):
    po = pytest.importorskip("plenoptic")
    theirs = po.Eigendistortion(image.float(), nn.Softplus().eval())
    theirs.synthesize("exact")
    theirs.to(torch.float64)
    assert theirs.eigenindex.dtype == torch.float64
    theirs.save(tmp_path / "floats.pt")
    ours = Eigendistortion(theirs.image, nn.Softplus().eval())
    ours.load(tmp_path / "floats.pt")
    assert ours.eigenindex.dtype == torch.int64
    assert ours.eigenindex.tolist() == list(range(36))


def test_files_of_other_classes_of_plenoptic_are_refused(image, tmp_path):
    po = pytest.importorskip("plenoptic")
    metamer = po.Metamer(image, Smooth())
    metamer.save(tmp_path / "metamer.pt")
    ours = Eigendistortion(image, Smooth())
    with pytest.raises(ValueError, match=r"a saved plenoptic\.Metamer"):
        ours.load(tmp_path / "metamer.pt")


def test_examine_prints_versions_name_and_tensors(saved, capsys):
    _, path = saved
    assert examine_saved_synthesis(path) is None
    text = capsys.readouterr().out
    for part in (torch.__version__, "eigenexp.Eigendistortion", "(36,), torch.float64, cpu",
                 "model: tests.compat.models.Smooth", "(1, 1, 6, 6)"):  # fmt: skip
        assert part in text


def test_plenoptic_can_examine_our_files(saved, capsys):
    po = pytest.importorskip("plenoptic")
    po.io.examine_saved_synthesis(saved[1])
    assert "eigenexp.Eigendistortion" in capsys.readouterr().out


# -- files that are not ours -------------------------------------------------------------------


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def refused(path, image):
    """Load ``path``; return the one error, after seeing that the object did not change."""
    eig = Eigendistortion(image, Smooth())
    before = dict(vars(eig))
    with pytest.raises(ValueError, match="saved") as error:
        eig.load(path, raise_on_checks=False)
    assert vars(eig) == before
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="saved"):
        examine_saved_synthesis(path)
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(share, saved, image, tmp_path):
    content = saved[1].read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
    refused(tmp_path / "cut.pt", image)


def test_hostile_files_are_not_executed(image, tmp_path):
    trap = tmp_path / "executed"
    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump({"save_metadata": Hostile(trap)}, file)
    torch.save({"save_metadata": {}, "x": Hostile(trap)}, tmp_path / "evil.zip")
    refused(tmp_path / "evil.pt", image)
    refused(tmp_path / "evil.zip", image)
    eig = Eigendistortion(image, Smooth())
    for options in ({"weights_only": False}, {"pickle_module": pickle}):
        with pytest.raises(ValueError, match="weights_only"):
            eig.load(tmp_path / "evil.zip", **options)
    assert not trap.exists()


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"state_dict": {}}, {"save_metadata": 3}, "text"]
)
def test_foreign_files(content, image, tmp_path):
    torch.save(content, tmp_path / "foreign.pt")
    refused(tmp_path / "foreign.pt", image)


def test_text_and_missing_files(image, tmp_path):
    (tmp_path / "text.pt").write_text("a letter")
    refused(tmp_path / "text.pt", image)
    with pytest.raises(FileNotFoundError):
        Eigendistortion(image, Smooth()).load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_image", torch.full((1, 1, 6, 6), float("nan"))),
        ("_image", "x"),
        ("_image", torch.zeros(2, 1, 6, 6)),
        ("_eigenvalues", torch.zeros(3)),
        ("_eigenvalues", 1.0),
        ("_eigendistortions", torch.zeros(36, 1, 5, 5)),
        ("_eigenindex", torch.full((36,), 36)),
        ("_jacobian", torch.zeros(4, 4)),
        ("_model", ("name",)),
        ("_model", (3, ("_image",), torch.zeros(1))),
    ],
)
def test_files_with_a_part_that_does_not_fit(key, value, saved, image, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    torch.save({**content, key: value}, tmp_path / "bent.pt")
    eig = Eigendistortion(image, Smooth())
    before = dict(vars(eig))
    with pytest.raises(ValueError, match="expected a file saved by Eigendistortion"):
        eig.load(tmp_path / "bent.pt", raise_on_checks=False)
    assert vars(eig) == before


def test_a_file_cannot_put_names_in_the_object(saved, image, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    torch.save({**content, "synthesize": "gone", "__class__": "x"}, tmp_path / "names.pt")
    eig = Eigendistortion(image, Smooth())
    with pytest.warns(LoadWarning, match="synthesize"):
        eig.load(tmp_path / "names.pt", raise_on_checks=False)
    assert callable(eig.synthesize)


def test_saving_keeps_the_old_file_when_it_fails(saved, image, monkeypatch):
    eig, path = saved
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        eig.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["saved.pt"]


# -- moves -------------------------------------------------------------------------------------


def test_to_casts_everything_and_the_next_call_goes_on(image):
    eig = Eigendistortion(image.float(), Smooth(dtype=torch.float32))
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(max_iter=20)
    spent = eig.spectrum.num_products
    eig.compute_jacobian()
    assert eig.to(torch.float64) is None
    for tensor in (eig.image, eig.eigendistortions, eig.eigenvalues, eig.jacobian,
                   eig.spectrum.residuals, eig.model.weight):  # fmt: skip
        assert tensor.dtype == torch.float64
    assert eig.eigenindex.dtype == eig.spectrum.eigenindex.dtype == torch.int64
    with pytest.warns(UserWarning, match="not converged"):
        eig.synthesize(max_iter=20)
    assert eig.spectrum.num_products > spent
    assert eig.eigenvalues.dtype == torch.float64


@pytest.mark.parametrize("method", ["lanczos", "davidson", "auto"])
def test_a_cast_solve_goes_on_from_its_vectors(method, tmp_path):
    image = picture(1, 1, 12, 12)
    values, _, _ = oracle(Smooth(), image)
    eig = Eigendistortion(image.float(), Smooth(dtype=torch.float32))
    eig.synthesize(method)
    spent = eig.spectrum.num_products
    assert eig.eigenvalues.dtype == torch.float32
    eig.save(tmp_path / "single.pt")
    loaded = Eigendistortion(image.float(), Smooth(dtype=torch.float32))
    loaded.load(tmp_path / "single.pt")
    for part in (eig, loaded):
        part.to(torch.float64)
        part.synthesize(method)
        assert part.spectrum.converged.all()
        assert part.eigenvalues.dtype == torch.float64
    assert torch.equal(eig.eigendistortions, loaded.eigendistortions)
    assert torch.allclose(eig.eigenvalues, values[eig.eigenindex], atol=1e-4 * float(values[0]))
    afresh = Eigendistortion(image, Smooth())
    afresh.synthesize(method)
    added = eig.spectrum.num_products - spent  # those before the cast count on
    assert 0 < added <= afresh.spectrum.num_products
    if method != "lanczos":  # which takes one start vector, and a random one
        assert added < 0.95 * afresh.spectrum.num_products


def test_a_moved_solve_goes_on_bit_for_bit(image):
    whole, moved = Eigendistortion(image, Smooth()), Eigendistortion(image, Smooth())
    for eig in (whole, moved):
        with pytest.warns(UserWarning, match="not converged"):
            eig.synthesize("lanczos", tol=1e-6, max_iter=5)
    moved.to("cpu")
    for eig in (whole, moved):
        eig.synthesize("lanczos", tol=1e-6)
    assert torch.equal(whole.eigendistortions, moved.eigendistortions)
    assert whole.spectrum.num_products == moved.spectrum.num_products


def test_to_takes_devices_tensors_and_keywords_and_refuses_integers(image):
    eig = Eigendistortion(image, Smooth())
    eig.to("cpu")
    eig.to(torch.zeros(1, dtype=torch.float32))
    assert eig.image.dtype == torch.float32
    eig.to(device="cpu", dtype=torch.float64)
    assert eig.image.dtype == torch.float64
    for wrong in (torch.int64, torch.bool):
        with pytest.raises(TypeError, match="floating"):
            eig.to(wrong)
    assert eig.image.dtype == torch.float64


def test_to_warns_for_a_model_without_to(image):
    eig = Eigendistortion(image, torch.tanh)
    with pytest.warns(UserWarning, match="no"):
        eig.to(torch.float32)
    eig.synthesize("exact")
    assert eig.eigenvalues.dtype == torch.float32


def test_to_after_diagonal_power(image):
    eig = Eigendistortion(picture(1, 1, 1, 3, dtype=torch.float32), diagonal([3, 2, 1]).float())
    eig.synthesize()
    eig.to(torch.float64)
    eig.synthesize(stop_criterion=1e-13)
    assert eig.eigenvalues.tolist() == pytest.approx([3, 1], rel=1e-6)
