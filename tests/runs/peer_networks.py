"""Build a network pair with another project's own code, save it as that project does, and record what it computes.

python peer_networks.py PEERS CASE FOLDER: PEERS holds checkouts of the projects by their names, and in `site` packages
that they need (mmcv 1.7). Writes the checkpoints, and expected.pt with inputs, images, logits and attention maps in
float64. Weights are random, far from their initial values, and coarse, so that they compress well.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNUSED = (
    "seaborn", "tensorflow", "skimage", "requests", "pandas", "sklearn", "h5py", "kornia", "prettytable", "lmdb",
    "mmcls", "mmcv.ops", "utils.style_ops",
)  # fmt: skip
Pair = tuple[nn.Module, nn.Module, Callable[..., Tensor], Callable[..., Tensor]]  # and how both are called


class StandIns(MetaPathFinder, Loader):
    """Imports as mocks what the projects import but their networks do not use: plots, downloads, compiled operators."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        unused = any(fullname == name or fullname.startswith(f"{name}.") for name in UNUSED)
        return ModuleSpec(fullname, self, is_package=True) if unused else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(__path__=[], __spec__=spec)

    def exec_module(self, module: Any) -> None:
        pass


def scatter(network: nn.Module) -> nn.Module:
    """Give every parameter and statistic a random value on a coarse grid."""
    rng = torch.Generator().manual_seed(len(list(network.parameters())))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point() or name.endswith(("accumulation_counter", "sv0")):
                continue
            values = torch.randn(tensor.shape, generator=rng)
            if "var" in name.split(".")[-1]:
                values = values.abs() + 0.5
            if tensor.numel() == 1 or "gain" in name:  # gains of attention and of the last batch norm
                values = 0.5 * values + 0.75
            tensor.copy_((16 * values).round() / 16)
        state = network.state_dict()
        for name in [name for name in state if name.endswith("weight_v")]:  # one power iteration: not converged
            matrix, u, v = (state[name.replace("weight_v", f"weight_{part}")].flatten(int(part == "orig"))
                            for part in ("orig", "u", "v"))  # fmt: skip
            u.copy_(F.normalize(matrix @ v, dim=0))
            v.copy_(F.normalize(u @ matrix, dim=0))
    return network


def biggan(**options: Any) -> Pair:
    import BigGAN

    d_attention = options.pop("D_attn", "0")
    common = {"G_ch": 2, "D_ch": 2, "G_lr": 1e-4, "D_lr": 1e-4, "D_attn": d_attention, "n_classes": 3, **options}
    g, d = BigGAN.Generator(**common), BigGAN.Discriminator(**common)
    return g, d, lambda z, y: g(z, g.shared(y)), lambda x, y: d(x, y).squeeze(1)


def studiogan(backbone: str, g_attention: list[int], d_attention: list[int], cond: bool = True) -> Pair:
    import config

    settings = SimpleNamespace(
        apply_g_sn=True, apply_d_sn=True, g_cond_mtd="cBN" if cond else "W/O", backbone=backbone, g_act_fn="ReLU",
        d_act_fn="ReLU", g_info_injection="N/A", info_type="N/A",
    )  # fmt: skip
    configurations = config.Configurations.__new__(config.Configurations)
    configurations.MODEL, configurations.MODULES = settings, SimpleNamespace()
    models = import_module(f"models.{backbone}")
    common = {
        "img_size": 32, "apply_attn": True, "num_classes": 3, "mixed_precision": False,
        "MODULES": configurations.define_modules(), "MODEL": settings,
    }  # fmt: skip
    g = models.Generator(
        z_dim=16, g_shared_dim=6, g_conv_dim=2, attn_g_loc=g_attention, g_cond_mtd=settings.g_cond_mtd, g_init="ortho",
        g_depth="N/A", **common,
    )  # fmt: skip
    d = models.Discriminator(
        d_conv_dim=4, apply_d_sn=True, attn_d_loc=d_attention, d_cond_mtd="PD" if cond else "W/O", aux_cls_type="N/A",
        d_embed_dim="N/A", normalize_d_embed=False, d_init="ortho", d_depth="N/A", **common,
    )  # fmt: skip
    for module in g.modules():
        if isinstance(module, nn.Linear):  # the one-hot labels that it makes are float32
            module.register_forward_pre_hook(lambda m, inputs: tuple(x.to(next(m.parameters()).dtype) for x in inputs))
    return g, d, g, lambda x, y: d(x, y)["adv_output"]


def mmgeneration(g_options: dict[str, Any], d_options: dict[str, Any], classes: int = 3) -> Pair:
    import mmgen.models.architectures  # noqa: F401  registers them
    from mmgen.models.builder import MODULES

    g = MODULES.build({"num_classes": classes, **g_options})
    d = MODULES.build({"num_classes": classes, **d_options})
    return g, d, lambda z, y: g(z, label=y), lambda x, y: d(x, y).squeeze(1)


def mimicry(module: str, name: str, g_options: dict[str, Any], d_options: dict[str, Any]) -> Pair:
    networks = import_module(f"torch_mimicry.nets.{module}")
    g, d = getattr(networks, name.replace("?", "Generator")), getattr(networks, name.replace("?", "Discriminator"))
    g, d = g(**g_options), d(**d_options)
    with_labels = "num_classes" in g_options
    return (g, d, lambda z, y: g(z, y) if with_labels else g(z),
            lambda x, y: (d(x, y) if with_labels else d(x)).squeeze(1))  # fmt: skip


SAGAN_32 = {"output_scale": 32, "base_channels": 8, "attention_after_nth_block": 1, "noise_size": 16}
PROJECTION_32 = {"type": "ProjDiscriminator", "input_scale": 32, "base_channels": 8, "attention_after_nth_block": 2}
BIGGAN_32 = {"type": "BigGANGenerator", "output_scale": 32, "base_channels": 2}
BIGGAN_D_32 = {"type": "BigGANDiscriminator", "input_scale": 32, "base_channels": 2}
TORCH = {"sn_style": "torch", "sn_eps": 1e-8}
CASES: dict[str, tuple[str, Callable[[], Pair]]] = {  # name -> (checkout, and folder in it; networks)
    "biggan-pytorch-sagan": ("BigGAN-PyTorch", lambda: biggan(
        resolution=64, G_attn="8", D_attn="8", G_shared=False, dim_z=10, G_ch=1, D_ch=2)),
    "biggan-pytorch-biggan": ("BigGAN-PyTorch", lambda: biggan(
        resolution=32, G_attn="8", G_shared=True, shared_dim=6, hier=True, dim_z=18)),
    "biggan-pytorch-shared": ("BigGAN-PyTorch", lambda: biggan(
        resolution=32, G_attn="8_16", G_shared=True, shared_dim=0, dim_z=7, mybn=True, num_G_SVs=2)),
    "tfhub-biggan": ("BigGAN-PyTorch", lambda: biggan(
        resolution=32, G_attn="8", G_shared=True, shared_dim=6, hier=True, dim_z=16, BN_eps=1e-4, SN_eps=1e-4)),
    "studiogan-sagan": ("PyTorch-StudioGAN/src", lambda: studiogan("resnet", [1], [2])),
    "studiogan-biggan": ("PyTorch-StudioGAN/src", lambda: studiogan("big_resnet", [1], [2])),
    "studiogan-unconditional": ("PyTorch-StudioGAN/src", lambda: studiogan("resnet", [1], [2], cond=False)),
    "studiogan-biggan-unconditional": (
        "PyTorch-StudioGAN/src", lambda: studiogan("big_resnet", [1], [2], cond=False)),
    "mmgeneration-sagan": ("mmgeneration", lambda: mmgeneration(
        {"type": "SAGANGenerator", "with_spectral_norm": True, **SAGAN_32}, PROJECTION_32)),
    "mmgeneration-sagan-inplace": ("mmgeneration", lambda: mmgeneration(
        {"type": "SAGANGenerator", "with_spectral_norm": True, "init_cfg": {"type": "SAGAN"}, **SAGAN_32},
        {**PROJECTION_32, "act_cfg": {"type": "ReLU", "inplace": True}})),
    "mmgeneration-sngan": ("mmgeneration", lambda: mmgeneration(
        {"type": "SNGANGenerator", **SAGAN_32, "attention_after_nth_block": 0, "use_cbn": True},
        {**PROJECTION_32, "attention_after_nth_block": 0})),
    "mmgeneration-biggan": ("mmgeneration", lambda: mmgeneration(
        {**BIGGAN_32, "noise_size": 16, "shared_dim": 6, "arch_cfg": {
            "in_channels": [8] * 3, "out_channels": [8] * 3, "upsample": [True] * 3,
            "attention": [True, False, False]}},
        {**BIGGAN_D_32, "arch_cfg": {
            "in_channels": [3, 8, 8, 8], "out_channels": [8, 8, 8, 16], "downsample": [True, True, False, False],
            "attention": [False, True, False, False]}})),
    "mmgeneration-biggan-cifar10": ("mmgeneration", lambda: mmgeneration(
        {**BIGGAN_32, "noise_size": 10, "with_shared_embedding": False, "split_noise": False, **TORCH},
        {**BIGGAN_D_32, **TORCH})),
    "mimicry-sagan": ("mimicry", lambda: mimicry(
        "sagan", "SAGAN?32", {"num_classes": 3, "nz": 16, "ngf": 8}, {"num_classes": 3, "ndf": 8})),
    "mimicry-sagan-128": ("mimicry", lambda: mimicry(
        "sagan", "SAGAN?128", {"num_classes": 3, "nz": 16, "ngf": 64}, {"num_classes": 3, "ndf": 128})),
    "mimicry-cgan-pd": ("mimicry", lambda: mimicry(
        "cgan_pd", "CGANPD?32", {"num_classes": 3, "nz": 16, "ngf": 8}, {"num_classes": 3, "ndf": 8})),
    "mimicry-sngan": ("mimicry", lambda: mimicry("sngan", "SNGAN?32", {"nz": 16, "ngf": 8}, {"ndf": 8})),
}  # fmt: skip


def save(project: str, g: nn.Module, d: nn.Module, folder: Path) -> None:
    """Write checkpoints as the project does."""
    if project.startswith("mmgeneration"):
        state = {f"{name}.{key}": tensor for name, network in (("generator", g), ("discriminator", d))
                 for key, tensor in network.state_dict().items()}  # fmt: skip
        torch.save({"meta": {"iter": 1, "epoch": 1}, "state_dict": state, "optimizer": {}}, folder / "iter_1.pth")
    elif project.startswith("studiogan"):
        torch.save({"state_dict": g.state_dict()}, folder / "model=G_ema-best-weights-step=1.pth")
        torch.save({"state_dict": d.state_dict(), "optimizer": {}, "step": 1, "run_name": "r", "best_fid": None},
                   folder / "model=D-best-weights-step=1.pth")  # fmt: skip
    elif project.startswith("mimicry"):
        for network, letter in ((g, "G"), (d, "D")):
            state = {"model_state_dict": network.state_dict(), "optimizer_state_dict": None, "global_step": 1}
            torch.save(state, folder / f"net{letter}_1_steps.pth")
    elif project.startswith("tfhub"):  # its converter leaves out the estimates of σ
        state = {key: tensor for key, tensor in g.state_dict().items() if not key.endswith("sv0")}
        torch.save(state, folder / "biggan-32.pth")
    else:
        torch.save(g.state_dict(), folder / "G_ema.pth")
        torch.save(d.state_dict(), folder / "D.pth")


@torch.no_grad()
def record(g: nn.Module, d: nn.Module, run_g: Callable[..., Tensor], run_d: Callable[..., Tensor]) -> dict[str, Tensor]:
    """What both networks compute in float64 and in eval mode, for one image per class; images in part."""
    g.double().eval(), d.double().eval()
    rng, maps, softmax = torch.Generator().manual_seed(1), [], F.softmax
    z = torch.randn(
        3, getattr(g, "dim_z", getattr(g, "z_dim", getattr(g, "noise_size", getattr(g, "nz", None)))), generator=rng
    ).double()
    labels = torch.arange(3)

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        maps.append(softmax(*arguments, **options))
        return maps[-1]

    F.softmax = recorded
    images = run_g(z, labels)
    count = len(maps)
    logits = run_d(images.clone(), labels)
    F.softmax = softmax
    attention = {
        f"{'g' if i < count else 'd'}{i if i < count else i - count}": rows[:1, ::7].clone()
        for i, rows in enumerate(maps)
    }
    return {"z": z, "labels": labels, "pixels": images[..., ::7, ::5].clone(), "logits": logits, **attention}


if __name__ == "__main__":
    peers, case, out = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])
    sys.meta_path.insert(0, StandIns())
    sys.path[:0] = [str(peers / CASES[case][0]), str(peers / "site")]
    g, d, run_g, run_d = CASES[case][1]()
    scatter(g), scatter(d)
    out.mkdir(parents=True, exist_ok=True)
    save(case, g, d, out)
    torch.save(record(g, d, run_g, run_d), out / "expected.pt")
