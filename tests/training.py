"""A Trainer that writes and prints nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L


def quiet_trainer(
    folder: Path, callbacks: list[L.Callback] | None = None, **options: Any
) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_steps": 5000,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": folder,
        **options,
    }
    return L.Trainer(callbacks=callbacks, **settings)
