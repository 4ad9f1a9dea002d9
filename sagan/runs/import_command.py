"""`sagan import`: a snapshot, or a run with a discriminator, from a checkpoint of another project."""

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F

from sagan.config.load import make_config
from sagan.config.options import Place
from sagan.config.options import as_json as json_option
from sagan.data.labels import CIFAR10_CLASSES
from sagan.models.gan import GAN
from sagan.models.generator import Generator, build_discriminator, build_generator
from sagan.models.hub import download, files_on_hub, hub_parts, load_exactly, write_snapshot
from sagan.runs.checkpoint import Progress, save_checkpoint
from sagan.runs.importers import LAYOUTS, Imported, Network, Role, read_network, sigma, translate
from sagan.utils.errors import UserError
from sagan.utils.io import atomic_folder, check_folder_place, expand_home, read_text, sha256, write_json

FILES: dict[Role, tuple[str, ...]] = {  # names of checkpoints in the folder of a run, the best first
    "generator": ("G_ema.pth", "model=G_ema-best-*", "model=G_ema-current-*", "G.pth", "model=G-best-*",
                  "model=G-current-*", "biggan-*.pth", "biggan-*.h5", "iter_*.pth", "netG_*.pth"),
    "discriminator": ("D.pth", "model=D-best-*", "model=D-current-*", "iter_*.pth", "netD_*.pth"),
}  # fmt: skip
STEP = "00000000"


@click.command("import")
@click.argument("file", type=Place())  # or an id on the Hub
@click.option("--out", type=Place(), required=True, help="New folder: a snapshot, or a run with --discriminator.")
@click.option("--from", "origin", type=click.Choice(list(dict.fromkeys(layout.name for layout in LAYOUTS))),
              help="The project.  [default: recognized]")  # fmt: skip
@click.option("--discriminator", type=Place(), metavar="FILE", help="Also import this discriminator.")
@click.option("--resolution", type=int, metavar="R", help="Fail if the images have another one.")
@click.option("--classes", type=int, metavar="K", help="Fail if there are others.")
@click.option("--class-names", metavar="imagenet|cifar10|FILE",
              help="Names of the classes; FILE has one a line.  [default: ImageNet's for 1000 classes]")  # fmt: skip
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="Change an assumption that the command prints.")
@json_option
def import_cli(
    file: Path, out: Path, origin: str | None, discriminator: Path | None, resolution: int | None,
    classes: int | None, class_names: str | None, assume: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Import the generator in FILE, a checkpoint of another project, or the folder of its run.

    On the Hugging Face Hub: USER/NAME/FILE, or USER/NAME.
    """
    check_folder_place(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; name a new folder with --out")
    changes = dict(_pair(text) for text in assume)
    imported = [translate(read_network(_find(file, "generator"), "generator", origin), changes, classes)]
    if discriminator is not None:
        imported.append(
            translate(read_network(_find(discriminator, "discriminator"), "discriminator", origin), changes)
        )
    for one in imported:
        _check(one, imported[0].resolution if resolution is None else resolution,
               imported[0].num_classes if classes is None else classes)  # fmt: skip
    names = read_names(class_names, imported[0].num_classes)
    reports = [describe(one) for one in imported]
    with atomic_folder(out) as folder:
        generator = imported_generator(imported[0], names)
        snapshot = folder if len(imported) == 1 else folder / "snapshots" / STEP
        snapshot.mkdir(parents=True, exist_ok=True)
        config = generator.snapshot_config() | {"origin": reports[0]["origin"]}
        write_snapshot(snapshot, config, generator.state_dict())
        if len(imported) == 2:
            write_run(folder, imported[0], imported[1], names, {"origin": [report["origin"] for report in reports]})
    print(json.dumps(reports) if as_json else "\n".join([*map(_as_text, reports), _named(names), str(out)]))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--assume {text}: expected NAME=VALUE, such as norm_eps=1e-4")
    return name.strip(), value.strip()


def _find(path: Path, role: Role) -> Path:
    """The file, or in a folder the checkpoint of this role: the best, or the last in the order of its numbers."""
    path = expand_home(path)
    on_hub = not path.exists() and hub_parts(path)
    if on_hub and on_hub[1]:
        return download(*on_hub, {})
    if not on_hub and not path.is_dir():
        return path
    names = files_on_hub(on_hub[0]) if on_hub else [each.name for each in path.iterdir()]
    for pattern in FILES[role]:
        if found := sorted(fnmatch.filter(names, pattern), key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
            return download(on_hub[0], found[-1], {}) if on_hub else path / found[-1]
    raise UserError(f"{path}: holds no checkpoint of a {role} ({', '.join(FILES[role])}); name the file")


def _check(imported: Imported, resolution: int, classes: int) -> None:
    if (imported.resolution, imported.num_classes) != (resolution, classes):
        raise imported.network.refuse(
            f"of {imported.resolution} px and {imported.num_classes} classes, expected {resolution} px and {classes}"
        )


def read_names(option: str | None, classes: int) -> tuple[str, ...]:
    """Names of the classes; () without. UserError if their number is another one."""
    if option is None and classes != 1000:
        return ()
    if option in (None, "imagenet"):
        from torchvision.models import ResNet50_Weights  # here: importing torchvision takes long

        names = tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    elif option == "cifar10":
        names = CIFAR10_CLASSES
    else:
        try:
            names = tuple(line.strip() for line in read_text(str(option)).splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--class-names {option}: not a readable text file ({error})") from None
    if len(names) != classes or not all(map(str.isprintable, names)):
        raise UserError(f"--class-names {option}: {len(names)} printable names expected for {classes} classes")
    return names


def imported_generator(imported: Imported, names: tuple[str, ...]) -> Generator:
    """The generator without spectral norm, in float32, as in a snapshot."""
    with torch.random.fork_rng(devices=[]):
        generator = Generator(imported.settings, imported.resolution, imported.num_classes, names)
    load_exactly(generator, imported.plain, imported.network.where)
    return generator.eval().requires_grad_(False)


def write_run(
    folder: Path, generator: Imported, discriminator: Imported, names: tuple[str, ...], about: dict[str, Any]
) -> None:
    """Write config, record and a checkpoint at step 0, in which the averaged generator is the raw one."""
    data = {"resolution": generator.resolution, "num_classes": generator.num_classes}
    settings = {one.network.role: one.settings.model_dump(mode="json") for one in (generator, discriminator)}
    config = make_config({"data": data, **settings})
    classes = generator.num_classes
    g, d = build_generator(config, classes, names), build_discriminator(config, classes)
    for network, one in ((g, generator), (d, discriminator)):
        load_exactly(network, one.state, one.network.where)
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=adam.lr, betas=adam.betas, eps=adam.eps)
        for network, adam in ((g, config.optim.generator), (d, config.optim.discriminator))
    ]
    save_checkpoint(folder / "checkpoints" / STEP, GAN(g, d, g, d, *optimizers, ema=g), Progress(0))
    (folder / "config.yaml").write_text(config.to_yaml())
    write_json(folder / "run.json", {"class_names": list(names), **about})


def describe(imported: Imported) -> dict[str, Any]:
    """What was found and assumed, for JSON."""
    network, settings = imported.network, imported.settings
    path = Path(network.where)
    found = {
        "resolution": imported.resolution,
        "classes": imported.num_classes,
        "channels": [settings.channels * width for width in settings.widths],
        "attention": sorted(settings.attention),
        "spectral_norm": settings.spectral_norm,
        "sigma_error": sigma_error(network),
        "parameters": sum(weight.numel() for name, weight in imported.plain.items() if "running_" not in name),
    }
    if network.role == "generator":
        found |= {"z_dim": settings.z_dim, "class_norm": settings.class_norm if imported.num_classes else None,
                  "hierarchical": settings.hierarchical}  # fmt: skip
    origin = {"project": network.layout.name, "file": path.name, "sha256": sha256(path), "weights": network.kind}
    return {"role": network.role, "title": network.layout.title, **found,
            "origin": {**origin, "assumed": imported.assumed}}  # fmt: skip


@torch.no_grad()
def sigma_error(network: Network, iterations: int = 10) -> float:
    """The largest relative difference of a stored σ from that after more power iterations."""
    worst = 0.0
    for name, vectors in network.vectors.items():
        matrix, v = network.weights[name].flatten(1).float(), vectors.v.float()
        for _ in range(iterations):
            u = F.normalize(matrix @ v, dim=0)
            v = F.normalize(u @ matrix, dim=0)
        worst = max(worst, abs(1 - float(sigma(network.weights[name], vectors) / (u @ matrix @ v))))
    return worst


def _as_text(report: dict[str, Any]) -> str:
    origin = report["origin"]
    classes = f"{report['classes']} classes" if report["classes"] else "no classes"
    if report["role"] == "generator":
        classes += f" ({report['class_norm']})" if report["classes"] else ""
        classes += f", z {report['z_dim']}" + (" in chunks" if report["hierarchical"] else "")
    attention = ", ".join(f"{size}x{size}" for size in report["attention"]) or "none"
    norm = f"σ as stored, within {report['sigma_error']:.1e} of converged" if report["spectral_norm"] else "none"
    assumed = " ".join(f"--assume {name}={str(value).lower()}" for name, value in origin["assumed"].items())
    return "\n".join([
        f"{origin['file']}: {report['role']} of {report['title']}, {origin['weights']} weights",
        f"  {report['resolution']} px, {classes}, channels {' '.join(map(str, report['channels']))}",
        f"  attention: {attention}; spectral norm: {norm}; {report['parameters']:,} parameters",
        f"  assumed: {assumed}",
    ])  # fmt: skip


def _named(names: tuple[str, ...]) -> str:
    return f"  class names: {', '.join(names[:3])}, …" if names else "  class names: none"
