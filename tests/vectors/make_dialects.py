"""Networks of MONAI 1.6.1, most of whose tensors have other names than those organum knows them by: checkpoints and what they compute, in
dialects/.

pip install torch==2.12.1 monai==1.6.1 safetensors
python3 make_dialects.py [NAME ..]
"""
import os
import sys

import torch
from monai.networks.nets import UNETR, BasicUNet, DynUNet, SegResNet, SegResNetDS, UNet
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
    # extents that the poolings do not divide
    "basic_unet": ([1, 2, 17, 20, 23], dict(
        spatial_dims=3, in_channels=2, out_channels=3, features=(4, 4, 6, 8, 8, 4), norm=("group", {"num_groups": 2}))),
    "basic_unet_2d": ([1, 1, 33, 48], dict(
        spatial_dims=2, in_channels=1, out_channels=2, features=(4, 4, 6, 8, 8, 4), norm="batch", act="relu", bias=False,
        upsample="nontrainable")),
    "seg_res_net": ([1, 2, 8, 12, 16], dict(
        spatial_dims=3, in_channels=2, out_channels=3, init_filters=4, norm=("group", {"num_groups": 2}), blocks_down=(1, 2, 1),
        blocks_up=(1, 2), dropout_prob=0.2)),
    "seg_res_net_2d": ([1, 1, 24, 16], dict(
        spatial_dims=2, in_channels=1, out_channels=2, init_filters=4, norm="batch", act=("leakyrelu", {"negative_slope": 0.2}),
        blocks_down=(1, 1, 1), blocks_up=(1, 1), upsample_mode="deconv")),
    "seg_res_net_ds": ([1, 1, 4, 16, 16], dict(
        spatial_dims=3, in_channels=1, out_channels=3, init_filters=2, norm="instance", blocks_down=(1, 1, 2, 1), dsdepth=2,
        resolution=(4.5, 1.0, 1.5))),
    "seg_res_net_ds_2d": ([1, 2, 16, 8], dict(
        spatial_dims=2, in_channels=2, out_channels=2, init_filters=4, blocks_down=(1, 2, 1), blocks_up=(2, 1), dsdepth=3,
        upsample_mode="nontrainable")),
    "unetr_2d": ([1, 1, 32, 48], dict(
        spatial_dims=2, in_channels=1, out_channels=2, img_size=(32, 48), feature_size=2, hidden_size=8, mlp_dim=16, num_heads=2,
        norm_name="instance", res_block=True)),
}
CLASSES = {"dynunet": DynUNet, "unet": UNet, "basic": BasicUNet, "unetr": UNETR}
for seed, (name, (shape, arguments)) in enumerate(NETWORKS.items()):
    if sys.argv[1:] and name not in sys.argv[1:]:
        continue
    torch.manual_seed(seed)
    network = CLASSES.get(name.split("_")[0], SegResNetDS if "_ds" in name else SegResNet)(**arguments)
    for key, tensor in network.state_dict().items():
        if key.endswith(("running_mean", "bias")) or (".norm" in key or ".adn." in key or "conv_final.0" in key) and key.endswith("weight"):
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
