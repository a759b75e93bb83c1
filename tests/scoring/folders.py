"""Folders of stimuli with a manifest alone, for what reads no picture."""

from __future__ import annotations

from pathlib import Path

import eigenexp as ee
from eigenexp.stimuli import Display, Manifest, Passport, Prediction, Reference, write_manifest


def write_folder(design: ee.scoring.Design, folder: Path, pair: str = "principal") -> Manifest:
    """Write the manifest of a design's stimuli; d′ of its passports are five times the models'."""
    gain = 5.0
    own = design.predictions[0]
    kinds = {name: (pair, i) for i, name in enumerate(design.names)}
    if pair != "principal":
        kinds = {name: (kind, i) for i, (name, kind) in
                 enumerate(zip(design.names, ("top", "bottom"), strict=True))}  # fmt: skip
    stimuli = []
    for i, name in enumerate(design.stimuli):
        distortion = design.distortions[i]
        predictions = [
            Prediction(
                one.model, f"{k}" * 64, "gaussian(std=1.0)", float(one.eigenvalues[distortion]),
                *(gain * float(one.d_primes[i]),) * 3,
            )
            for k, one in enumerate(design.predictions)
        ]  # fmt: skip
        kind, index = kinds[distortion]
        stimuli.append(Passport(
            id=name, file=f"pictures/{name}.png", file_sha256="ab" * 32, reference="camera",
            picture="camera", picture_sha256="cd" * 32, model=own.model, fingerprint="0" * 64,
            noise="gaussian(std=1.0)", perturbations="everything", distortion=distortion,
            pair=kind, index=index, eigenvalue=predictions[0].eigenvalue, error_bound=None,
            status="measured", level=None, alpha=float(design.amplitudes[i]), sign=1,
            d_prime_linear=1.0, d_prime_true=1.0, d_prime_rounded=1.0, gain=gain,
            fraction_correct=0.76, peak_grey_levels=4.0, rms_grey_levels=1.0, clipped_pixels=0,
            display_gamma="srgb", pixels_per_degree=None, run_id="", predictions=tuple(predictions),
        ))  # fmt: skip
    manifest = Manifest(
        task=design.task,
        alternatives=design.alternatives,
        display=Display("srgb", False, 8, "plain", 0.0, 1.0, None),
        references=(Reference("camera", "camera", "cd" * 32, "pictures/camera.png", "12" * 32),),
        stimuli=tuple(stimuli),
    )
    folder.mkdir(exist_ok=True)
    write_manifest(manifest, folder)
    return manifest
