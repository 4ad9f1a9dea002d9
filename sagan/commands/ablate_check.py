"""What can be wrong with the variants of an ablation, found in a process of its own before anything is trained.

In one of its own because the memory of a process counts as that of those it starts: what trains must not begin with
the torch of what looks on.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagan.commands.train import resolved
from sagan.config import check_processes, make_config
from sagan.data.dataset import PreparedData
from sagan.data.prepare import ensure_prepared, to_stderr
from sagan.errors import UserError
from sagan.settings import Config

CHECK = "from sagan.commands.ablate_check import main; main()"


@dataclass(frozen=True)
class Checked:
    """Parameters of generator and discriminator of each variant, and the kind of device that will train them."""

    parameters: dict[str, tuple[int, int]]
    device: str


def check_variants(configs: dict[str, Config], folder: Path) -> Checked:
    """Build the networks of every variant without memory, prepare data and find weights; writes nothing to `folder`.

    UserError for the first variant that could not be trained or scored.
    """
    question = {"folder": str(folder), "configs": {name: config.to_dict() for name, config in configs.items()}}
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(command, input=json.dumps(question), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise UserError(answer["error"])
    return Checked({name: (g, d) for name, (g, d) in answer["parameters"].items()}, answer["device"])


def main() -> None:
    """The process: a question on stdin, an answer on stdout, both JSON; what data preparation says on stderr."""
    question = json.load(sys.stdin)
    configs = {name: make_config(raw) for name, raw in question["configs"].items()}
    try:
        answer = _answer(configs, Path(question["folder"]))
    except UserError as error:
        answer = {"error": str(error)}
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(answer))


def _answer(configs: dict[str, Config], folder: Path) -> dict[str, Any]:
    for name, config in configs.items():
        _of_variant(name, parameters_of, config, config.data.num_classes or 0)  # mistakes first, preparing takes long
    prepared: dict[str, PreparedData] = {}
    parameters = {}
    for name, config in configs.items():
        key = config.data.model_dump_json()
        if key not in prepared:
            prepared[key] = _of_variant(name, ensure_prepared, config.data, None, to_stderr)
        config = resolved(config, prepared[key])
        parameters[name] = _of_variant(name, parameters_of, config, config.data.num_classes or 0)
        _of_variant(name, check_processes, config, 1)
    return {"parameters": parameters, "device": _device(configs, prepared, folder)}


def parameters_of(config: Config, classes: int) -> tuple[int, int]:
    """Parameters of generator and discriminator, built without memory. UserError where they cannot be built."""
    import torch

    from sagan.discriminator import Discriminator
    from sagan.networks import Generator

    with torch.device("meta"):
        networks = (
            Generator(config.generator, config.data.resolution, classes),
            Discriminator(config.discriminator, config.data.resolution, classes),
        )
    generator, discriminator = (sum(p.numel() for p in network.parameters()) for network in networks)
    return generator, discriminator


def _device(configs: dict[str, Config], prepared: dict[str, PreparedData], folder: Path) -> str:
    """The device of the runs; UserError where the machine lacks what they ask for, or weights to score with."""
    from accelerate.state import AcceleratorState

    from sagan.evaluating import make_evaluator
    from sagan.run import make_accelerator

    devices, seen = list[str](), set[str]()
    for name, config in configs.items():
        training, key = config.training, config.data.model_dump_json()
        asked = f"{training.device} {training.precision} {training.trackers} {key}"
        if asked not in seen:
            seen.add(asked)
            device = _of_variant(name, make_accelerator, config, folder).device
            AcceleratorState._reset_state(reset_partial_state=True)  # it refuses a second precision in one process
            classes = resolved(config, prepared[key]).data.num_classes
            _of_variant(name, make_evaluator, config.evaluate, prepared[key], classes, device)
            devices.append(device.type)
    return devices[0]


def _of_variant(name: str, check: Any, *arguments: Any) -> Any:
    """check(*arguments), its UserError under the name of the variant."""
    try:
        return check(*arguments)
    except UserError as error:
        raise UserError(f"variant {name}: {error}") from None
