"""Files for plenoptic's ``load`` made by somebody who means harm."""

from __future__ import annotations

import os

import pytest
import torch

import eigenexp as ee
from tests.attacks import (
    Attacks,
    Payload,
    Place,
    bomb,
    check_nothing_happens,
)

ATTACKS = Attacks()
attack = ATTACKS.add


@attack
def plenoptic_file_with_a_payload(place: Place) -> object:
    torch.save({"_image": Payload(os.system, place.touch())}, place.here / "eig.pt")
    model = ee.models.OnOff().eval()
    eigendistortion = ee.Eigendistortion(torch.rand(1, 1, 32, 32), model)
    return eigendistortion.load(place.here / "eig.pt")


@attack
def plenoptic_file_that_unpacks_to_gigabytes(place: Place) -> object:
    bomb(place.here / "eig.pt", 1 << 29)
    eigendistortion = ee.Eigendistortion(torch.rand(1, 1, 32, 32), ee.models.OnOff().eval())
    return eigendistortion.load(place.here / "eig.pt")


@pytest.mark.filterwarnings("ignore::eigenexp.checkpoints.CheckpointWarning")
@pytest.mark.filterwarnings("ignore:.*can be read by anyone:UserWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_it_happens(name: str, place: Place) -> None:
    check_nothing_happens(ATTACKS[name], place)
