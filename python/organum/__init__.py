"""organum runs medical image segmentation networks on any GPU, on the whole volume, in the memory
you give it.

    import nibabel, organum
    from tqdm import tqdm

    model = organum.open("Dataset300_Heart/nnUNetTrainer__nnUNetPlans__3d_fullres")
    labels = model.segment(nibabel.load("scan.nii.gz"), memory="2GiB", progress=tqdm)
    nibabel.save(labels, "labels.nii.gz")

``organum.nnunet`` has the predictor of nnU-Net v2 with the same arguments and file names.
"""

from . import nnunet
from ._errors import (
    DeviceError,
    Error,
    LoadError,
    OptionError,
    PlanError,
    RunError,
    ScanError,
    ScanWarning,
)
from ._images import Scan, read
from ._model import LabelVolume, Model, Segmentation, devices, open

__all__ = [
    "DeviceError",
    "Error",
    "LabelVolume",
    "LoadError",
    "Model",
    "OptionError",
    "PlanError",
    "RunError",
    "Scan",
    "ScanError",
    "ScanWarning",
    "Segmentation",
    "devices",
    "nnunet",
    "open",
    "read",
]
