"""Models and scans of the repository's tests and demo."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "weights/demo"


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def scan_file():
    return DEMO / "mni152_hippocampus_right.nii.gz"


@pytest.fixture(scope="session")
def labels_file():
    """The labels that PyTorch made of the scan with the model's weights."""
    return DEMO / "mni152_hippocampus_right_labels.nii.gz"


@pytest.fixture(scope="session")
def model():
    import organum

    return organum.open(ROOT / "weights/hippocampus_u_transformer.safetensors", device="cpu")
