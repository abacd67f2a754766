"""The HD95 and NSD figures of src/volume/metrics.rs: two boxes on a straight and on a sheared grid.

python tests/vectors/make_metrics.py (numpy, scipy, torch, monai==1.6.1)
"""
import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

n = (12, 14, 16)
p, r = np.zeros(n, bool), np.zeros(n, bool)
p[2:8, 3:9, 4:11] = True
r[4:11, 3:11, 2:9] = True


def hd95(steps):
    def surface(mask):
        inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1), border_value=0)
        return np.argwhere(mask & ~inner) @ np.array(steps, float)

    a, b = surface(p), surface(r)
    return np.percentile(np.concatenate([cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]]), 95)


print("STRAIGHT", repr(hd95([[0, 0, 3], [0, 1, 0], [1, 0, 0]])))
print("TILTED  ", repr(hd95([[0, 1.5, 3], [0, 1, 0], [1, 0, 0]])))

# surface Dice, of MONAI 1.6.1
import torch  # noqa: E402
from monai.metrics import compute_surface_dice  # noqa: E402


def channels(mask):
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


for tolerance in (0.0, 1.0, 2.5, 3.0, 6.5):
    print("NSD", tolerance, compute_surface_dice(channels(p), channels(r), [tolerance], spacing=(3.0, 1.0, 1.0)).item())
