"""Networks of MONAI 1.6.1, most of whose tensors have other names than those organum knows them by: checkpoints and what they compute, in
dialects/.

pip install torch==2.12.1 monai==1.6.1 safetensors
python3 make_dialects.py
"""
import os

import torch
from monai.networks.nets import DynUNet, UNet
from safetensors.torch import save_file

os.makedirs("dialects", exist_ok=True)
NETWORKS = {
    "dynunet": ([1, 2, 8, 8, 16], dict(
        spatial_dims=3, in_channels=2, out_channels=3, kernel_size=[[1, 3, 3], 3, [3, 3, 5]], strides=[1, [1, 2, 2], 2],
        upsample_kernel_size=[[1, 2, 2], 2], filters=[4, 6, 8])),
    "dynunet_residual": ([1, 1, 8, 8, 8], dict(
        spatial_dims=3, in_channels=1, out_channels=2, kernel_size=[3] * 4, strides=[1, 2, 2, 1], upsample_kernel_size=[2, 2, 1],
        filters=[4, 4, 6, 6], norm_name="instance", res_block=True, deep_supervision=True, deep_supr_num=2, trans_bias=True)),
    "dynunet_2d": ([1, 1, 12, 16], dict(
        spatial_dims=2, in_channels=1, out_channels=2, kernel_size=[3] * 3, strides=[1, 2, 2], upsample_kernel_size=[2, 2],
        filters=[4, 6, 8], norm_name="batch")),
    "unet": ([1, 2, 12, 16], dict(
        spatial_dims=2, in_channels=2, out_channels=3, channels=[4, 6, 8], strides=[2, [1, 2]], up_kernel_size=5, norm=("instance", {"affine": True}),
        act="leakyrelu")),
    "unet_residual": ([1, 1, 8, 16, 16], dict(
        spatial_dims=3, in_channels=1, out_channels=2, channels=[4, 4, 6, 8], strides=[[1, 2, 2], 1, 2], num_res_units=2, norm="batch")),
    "unet_one_unit": ([1, 1, 8, 8, 8], dict(
        spatial_dims=3, in_channels=1, out_channels=2, channels=[4, 6], strides=[2], num_res_units=1, kernel_size=5, bias=False)),
    "unet_adn": ([1, 1, 8, 12], dict(
        spatial_dims=2, in_channels=1, out_channels=2, channels=[4, 6], strides=[2], norm="batch", adn_ordering="ADN")),
    "unet_bare": ([1, 1, 8, 12], dict(
        spatial_dims=2, in_channels=1, out_channels=2, channels=[4, 6], strides=[2], num_res_units=2, norm=None, act=None)),
}
for seed, (name, (shape, arguments)) in enumerate(NETWORKS.items()):
    torch.manual_seed(seed)
    network = (DynUNet if name.startswith("dynunet") else UNet)(**arguments)
    for key, tensor in network.state_dict().items():
        if key.endswith(("running_mean", "bias")) or (".norm" in key or ".adn." in key) and key.endswith("weight"):
            tensor.normal_(1.0 if key.endswith("weight") else 0.0, 0.2)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    network.eval()
    x = torch.randn(shape)
    with torch.no_grad():
        y = network.double()(x.double()).float()
    torch.save(network.float().state_dict(), f"dialects/{name}.pth")
    save_file({"input": x, "output": y}, f"dialects/{name}.safetensors")
    print(name, sum(p.numel() for p in network.parameters()), os.path.getsize(f"dialects/{name}.pth"))
