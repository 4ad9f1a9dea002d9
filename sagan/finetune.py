"""Start a run from the weights of another: same architecture, perhaps other classes."""

from pathlib import Path

from torch import Tensor, nn

from sagan.adversarial import GAN
from sagan.checkpoint import newest_whole_checkpoint
from sagan.errors import UserError
from sagan.layers import Normalization
from sagan.networks import Head
from sagan.pretrained import load_exactly, read_snapshot, read_tensors
from sagan.spectral_norm import refresh_spectral_norm, spectral_norms


def initialize_from(gan: GAN, source: str) -> str:
    """Load generator (and, from a run, discriminator) weights into a new GAN; returns a line saying what was loaded.

    `source`: a snapshot (folder or Hub id), which holds the averaged generator alone, or a run, whose newest
    checkpoint is used. Class tables are kept when the number of classes is the same; else every class starts at the
    mean of the old ones. UserError when the architectures differ in anything else.
    """
    if (Path(source) / "checkpoints").is_dir():
        checkpoint, problems = newest_whole_checkpoint(Path(source))
        if checkpoint is None:
            raise UserError(f"{source}: this run has no whole checkpoint {'; '.join(problems)}")
        _load(gan.generator, read_tensors(checkpoint / "average.safetensors"), source)
        _load(gan.discriminator, read_tensors(checkpoint / "discriminator.safetensors"), source)
        said = f"weights of both networks from {checkpoint}"
    else:
        _, state = read_snapshot(source)
        _load(gan.generator, _unbaked(gan.generator, state), source)
        said = f"generator weights from {source}; the discriminator starts anew (a run would hold it)"
    gan.average.load_state_dict(gan.generator.state_dict())
    return said


def _load(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = network.state_dict()
    tables = _class_tables(network, own, state)
    replaced = {name for prefix in tables for name in state if name.startswith(prefix)}
    kept = {name: tensor for name, tensor in state.items() if name not in replaced}
    load_exactly(network, kept | {name: t for table in tables.values() for name, t in table.items()}, source)
    refresh_spectral_norm(network)


def _class_tables(network: nn.Module, own: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What depends on the classes, where it does not fit `state` as it is: prefix of the names -> tensors made anew."""
    tables = {}
    for prefix, module in network.named_modules():
        mine = {name: own[name] for name in own if name.startswith(f"{prefix}.")}
        if all(name in state and state[name].shape == tensor.shape for name, tensor in mine.items()):
            continue
        if isinstance(module, Normalization):
            gain, bias = _mean_gain_and_bias(prefix, state)
            tables[f"{prefix}."] = {name: _filled(name, tensor, gain, bias, state) for name, tensor in mine.items()}
        elif isinstance(module, Head):
            embeddings = [name for name in mine if ".embedding." in name]
            old = [
                t for name, t in state.items() if name.startswith(f"{prefix}.embedding.") and name.endswith("original")
            ]
            new = {
                n: own[n] if not old or n.endswith(("_u", "_v")) else old[0].mean(0).expand_as(own[n])
                for n in embeddings
            }
            tables[f"{prefix}.embedding."] = new
    return tables


def _mean_gain_and_bias(prefix: str, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Gain and bias (C,) of a batch norm in `state`, averaged over its classes, if it has any."""
    if f"{prefix}.gain.weight" in state:  # tables (K, C)
        return state[f"{prefix}.gain.weight"].mean(0), state[f"{prefix}.bias.weight"].mean(0)
    linear = f"{prefix}.gain.parametrizations.weight.original"
    if linear in state:  # linears (C, K), gain above 1
        return 1 + state[linear].mean(1), state[linear.replace(".gain.", ".bias.")].mean(1)
    if f"{prefix}.weight" in state:
        return state[f"{prefix}.weight"], state[f"{prefix}.bias"]
    raise UserError(f"the weights to start from have no {prefix}: another architecture")


def _filled(name: str, tensor: Tensor, gain: Tensor, bias: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The tensor `name` of a batch norm whose every class has this gain and bias (C,)."""
    if name.endswith(("running_mean", "running_var")):
        return state.get(name, tensor)
    if name.endswith(("_u", "_v")):
        return tensor
    value = bias if ".bias." in name or name.endswith(".bias") else gain
    if name.endswith("original"):
        return (value - 1 if ".gain." in name else value)[:, None].expand_as(tensor)
    return value.expand_as(tensor)


def _unbaked(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A snapshot's tensors under the names they have before baking; singular vectors as in `network`."""
    normalized = {name for name, _, _ in spectral_norms(network)}
    renamed = {}
    for name, tensor in state.items():
        owner = name.removesuffix(".weight")
        renamed[f"{owner}.parametrizations.weight.original" if name in normalized else name] = tensor
    vectors = {n: t for n, t in network.state_dict().items() if n.endswith(("._u", "._v"))}
    return vectors | renamed
