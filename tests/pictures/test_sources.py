"""What pictures may be given as, and what is said when they cannot be used."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import eigenexp as ee
from eigenexp.errors import EigenexpError, ImageError
from eigenexp.pictures.sources import find_pictures, left_out, picture_sources


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("b.png", "a.png", "more/c.png"):
        Image.fromarray(np.full((4, 4), 100, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("")
    (folder / ".hidden.png").write_text("")
    return folder


def test_folders_globs_and_lists_give_absolute_paths_in_a_fixed_order(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (str(photos / name) for name in ("a.png", "b.png", "more/c.png"))
    assert find_pictures(str(photos)) == [a, b]
    assert find_pictures(f"{photos}/**/*.png") == [a, b, c]
    assert find_pictures([c, photos, "camera"]) == [c, a, b, "camera"]
    monkeypatch.chdir(photos)
    assert find_pictures("*.png") == [a, b]


@pytest.mark.parametrize("name", ["run [1]", "a*b", "w?"])
def test_a_pattern_is_what_is_written_not_the_folder_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    Image.fromarray(np.full((4, 4), 100, np.uint8)).save(folder / "a.png")
    assert find_pictures(f"{folder}/*.png") == [str(folder / "a.png")]
    # A file that a study names and that is gone is that picture's failure, not an empty pattern.
    assert find_pictures([str(folder / "gone.png")]) == [str(folder / "gone.png")]
    monkeypatch.chdir(folder)
    assert find_pictures("*.png") == [str(folder / "a.png")]


def test_a_folder_takes_every_format_that_loads_and_tells_what_it_leaves_out(photos: Path) -> None:
    whole = Image.fromarray(np.full((8, 8), 100, np.uint8))
    for name in ("d.jp2", "e.avif", "f.tga"):
        whole.save(photos / name)
    (photos / "g.exr").write_bytes(b"v/1\x01")
    (photos / "h.png").symlink_to(photos / "gone.png")
    names = [Path(path).name for path in find_pictures(photos)]
    assert names == ["a.png", "b.png", "d.jp2", "e.avif", "f.tga", "h.png"]
    assert left_out(photos) == left_out(["camera", photos]) == ["g.exr", "notes.txt"]
    assert left_out("camera") == left_out(f"{photos}/*.png") == []
    *whole_ones, dead = picture_sources(photos)
    assert {source.load().tensor.shape[1] for source in whole_ones} == {1}
    with pytest.raises(ImageError, match=r"a link to .*, which is gone"):
        dead.load()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{0}/more/*.tif", "expected a glob that some picture fits"),
        ("{0}/empty", "expected a folder with pictures"),
        (["{0}", "{0}/a.png"], "a.png twice"),
        ([], "at least one picture"),
        ([3], "expected paths or names"),
        (3, "expected a folder, a glob, or a list"),
    ],
)
def test_what_names_no_pictures_is_one_clear_line(photos: Path, path: object, words: str) -> None:
    (photos / "empty").mkdir()
    filled = path
    if isinstance(path, str):
        filled = path.format(photos)
    elif isinstance(path, list):
        filled = [part.format(photos) if isinstance(part, str) else part for part in path]
    with pytest.raises(EigenexpError, match=words) as caught:
        find_pictures(filled)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


class Numbers(Dataset[object]):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> object:
        picture = torch.full((1, 4, 4), index / 4)
        kinds: dict[str, object] = {
            "tensor": picture,
            "pair": (picture, 7),
            "mapping": {"image": picture, "label": 7},
        }
        return kinds[self.kind]


class Data(L.LightningDataModule):
    def __init__(self, splits: list[str]) -> None:
        super().__init__()
        for split in splits:
            setattr(self, f"{split}_dataloader", lambda: DataLoader(Numbers("pair")))


@pytest.mark.parametrize("kind", ["tensor", "pair", "mapping"])
def test_datasets_are_loaded_item_by_item(kind: str) -> None:
    sources = picture_sources(Numbers(kind), channels="keep")
    assert [source.where for source in sources] == ["dataset[0]", "dataset[1]", "dataset[2]"]
    assert float(sources[2].load().tensor.max()) == 0.5


def test_a_datamodule_gives_the_dataset_of_its_first_loader() -> None:
    assert len(picture_sources(Data(["train"]))) == 3
    assert len(picture_sources(Data(["test", "train"]))) == 3
    with pytest.raises(EigenexpError, match="expected a predict, test, val or train loader"):
        picture_sources(Data([]))


def test_tensors_arrays_and_pictures() -> None:
    stack = torch.rand(5, 1, 4, 4)
    sources = picture_sources(stack, channels="keep")
    assert torch.equal(torch.cat([source.load().tensor for source in sources]), stack)
    picture = ee.load_picture("camera", crop=8)
    mixed = picture_sources([picture, np.zeros((4, 4)), "coins"])
    assert [source.name for source in mixed] == ["camera", "1", "coins"]
    assert mixed[0].load() is picture


class Stream(IterableDataset[Tensor]):
    def __iter__(self):
        yield torch.rand(1, 4, 4)


@pytest.mark.parametrize("pictures", [Stream(), [], torch.rand(4, 4), 7])
def test_what_cannot_be_asked_for_again_is_refused(pictures: object) -> None:
    with pytest.raises(EigenexpError, match="expected"):
        picture_sources(pictures)
