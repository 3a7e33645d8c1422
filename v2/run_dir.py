"""Run folders: checkpoints/v2/<game>/runs/<YYYYMMDD_HHMMSS>/ with config, metrics and samples."""

from pathlib import Path

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints" / "v2"
