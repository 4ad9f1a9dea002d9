"""Settings: from YAML and --set to a complete config, or one line that names the mistake."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from sagan.config.load import differences, load_config, replaced, shipped_configs
from sagan.config.schema import RESOLUTIONS, Config
from sagan.utils.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def refusal(overrides: list[str], path: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainin.steps=3", "unknown setting trainin; did you mean training?"),
        ("training.stepz=3", "did you mean training.steps?"),
        ("optim.generator.learning_rate=1", "unknown setting optim.generator.learning_rate; known: lr, betas, eps"),
        ("zzz=1", "known: seed,"),
        ("discriminator.frontend={name: zoom, patches: 3}", "discriminator.frontend.zoom.patches; known: name, scales"),
        ("training.steps=many", "training.steps: input should be a valid integer"),
        ("training.steps=-1", "training.steps: input should be greater than 0, not -1"),
        ("training.steps.more=3", "training.steps: "),
        ("generator.channels={}", "generator.channels: "),
        ("training=3", "training: "),
        ("seed=1.5", "seed: "),
        ("seed.x.y=3", "seed"),
        ("optim.generator.lr=.inf", "optim.generator.lr: "),
        ("loss.r1=.nan", "loss.r1: "),
        ("data.resolution=48", "32, 64, 128, 256"),
        ("data.resolution=[32]", "data.resolution: "),
        ('data.source=""', "data.source: "),
        ('data.source="a\\0b"', "data.source holds a NUL"),
        ("loss.name=hing", "loss.name: input should be 'hinge'"),
        ("augment.policy=[colour]", "augment.policy.0: "),
        ("generator.widths=[1, 2]", "generator.widths needs 4 numbers at resolution 32, has 2"),
        ("generator.attention={64: self_attention}", "generator.attention: no block outputs 64x64"),
        ("generator.attention={4: self_attention}", "known: 8, 16, 32"),
        ("discriminator.attention={32: self_attention}", "known: 16, 8"),
        ("generator.attention.x=self_attention", "generator.attention.x"),
        ("generator.attention.16=3", "generator.attention.16: "),
        ("generator.attention.16.place=befor", "generator.attention.16.place: "),
        ("generator.attention={16: {pool: false}}", "generator.attention.16.name: field required"),
        ("generator.attention.8.pool=!!binary /w==", "generator.attention.8"),
        ("generator.attention.8.pool=&x [*x]", "generator.attention.8"),
        ("optim.accumulation=3", "training.batch_size 64 is not divisible by optim.accumulation 3"),
        ("ema={decay: 0.9, half_life: 100}", "ema: give decay or half_life"),
        ("ema={decay: 0.9, ramp: 0.1}", "ema: give decay or ramp"),
        ("evaluate.patience=2", "evaluate: patience needs best"),
        ("training={cuda_graphs: true, precision: fp16}", "training.cuda_graphs"),
        ("training={cuda_graphs: true, activation_checkpointing: true}", "training.cuda_graphs"),
        ("training={compile: true, activation_checkpointing: true}", "training.activation_checkpointing exclude"),
        ("generator.hierarchical=true", "generator.hierarchical needs generator.class_norm shared"),
        ("divergence.worse.fid=2", "divergence.worse: fid is not scored"),
        ("divergence.worse.fidd=2", "divergence.worse.fidd"),
        ("divergence.action=wait", "divergence.action: "),
        ("training.steps", "--set training.steps: expected NAME=VALUE"),
        ("=3", "--set =3: expected NAME=VALUE"),
        ("training.steps=[1", "--set training.steps=[1: the value is not readable as YAML"),
        ("training.steps=!!python/name:os.system", "not readable as YAML"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, expected: str) -> None:
    assert expected in refusal([override])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.compile=true", "loss.r1=1"], "training.compile and loss.r1 exclude each other"),
        (["divergence.saturation=0.1", "loss.name=wasserstein"], "divergence.saturation"),
        (["divergence.spread=0.5", "training.samples_per_class=1"], "divergence.spread"),
        (["divergence={action: rollback, worse: {is: 2}}", "evaluate={every: 1, metrics: [is]}"], "evaluate.best"),
        (["generator={hierarchical: true, z_dim: 127, class_norm: shared}"], "127 is not divisible by 4"),
        (["generator={hierarchical: true, z_dim: 81, class_norm: shared}"], "the nearest that is: 80"),
        (["generator={hierarchical: true, z_dim: 1, class_norm: shared}"], "the nearest that is: 4"),
    ],
)
def test_settings_that_exclude_each_other(overrides: list[str], expected: str) -> None:
    assert expected in refusal(overrides)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {steps: [", "not readable as YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("data: !!python/object/new:os.system []", "not readable as YAML"),
        ("seed: 2001-99-99", "not readable as YAML"),
        ("- 1", "this is a list"),
        ("hello", "this is a str"),
        ("1: 2", "keys should be strings"),
        ("trainin: {steps: 3}", "did you mean training?"),
        ("data: &x {a: *x}", "contains itself"),
        ("training: {steps: 3}\ntraining: {batch_size: 8}", "training is written twice"),
        (b"\xff\xfe\x00", "not readable"),
        (None, "no such config file"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str | bytes | None, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal([], path)
    assert "bad.yaml" in message
    assert expected in message


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_defaults_follow_the_resolution(resolution: int) -> None:
    config = load_config(None, [f"data.resolution={resolution}"])
    at = {32: 16, 64: 32, 128: 32, 256: 64}[resolution]
    assert list(config.generator.attention) == list(config.discriminator.attention) == [at]
    assert config.generator.attention[at].name == "self_attention"
    assert len(config.generator.widths) == resolution.bit_length() - 2


def test_values_are_yaml_and_later_ones_win() -> None:
    config = load_config(None, ["training.steps=3", "data.flip=true", "training.steps=5", "optim.generator.lr=2e-4",
                                "augment.policy=[color, cutout]", "ema.half_life=null"])  # fmt: skip
    assert (config.training.steps, config.data.flip, config.optim.generator.lr) == (5, True, 2e-4)
    assert config.augment.policy == ("color", "cutout")
    assert config.ema.half_life is None


def test_attention_can_be_removed_moved_and_changed(tmp_path: Path) -> None:
    """{} removes all, null removes one, a dotted name sets one."""
    removed = load_config(None, ["generator.attention={}"])
    assert removed.generator.attention == {}
    assert 16 in removed.discriminator.attention
    assert load_config(None, ["generator.attention.16=null"]).generator.attention == {}
    added = load_config(None, ["generator.attention.32=self_attention"]).generator.attention
    assert sorted(added) == [16, 32]
    changed = load_config(None, ["generator.attention.16.pool=false"]).generator.attention[16]
    assert (changed.name, changed.place, changed.options) == ("self_attention", "after", {"pool": False})
    (tmp_path / "c.yaml").write_text("generator: {attention: {8: self_attention, 16: {name: self_attention}}}")
    left = load_config(tmp_path / "c.yaml", ["generator.attention.16=null"]).generator.attention
    assert list(left) == [8]


@pytest.mark.parametrize("override", ["generator.attention.16=null", "generator.attention.16.pool=false"])
def test_overrides_hold_on_a_resolved_config(tmp_path: Path, override: str) -> None:
    """Resolutions in the config.yaml of a run are numbers, or an override would add 16 beside '16'."""
    (tmp_path / "config.yaml").write_text(load_config(None).to_yaml())
    found = load_config(tmp_path / "config.yaml", [override])
    assert found == load_config(None, [override])


@pytest.mark.parametrize("setting", ["betas: [0.5, 0.9]", "eps: 1.0e-6"])
def test_one_setting_of_an_optimizer_can_be_given_alone(tmp_path: Path, setting: str) -> None:
    (tmp_path / "c.yaml").write_text(f"optim: {{generator: {{{setting}}}, discriminator: {{{setting}}}}}")
    config = load_config(tmp_path / "c.yaml")
    assert (config.optim.generator.lr, config.optim.discriminator.lr) == (1e-4, 4e-4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolved_configs_round_trip(tmp_path: Path, path: Path) -> None:
    config = load_config(path)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
    assert differences(load_config(tmp_path / "config.yaml"), config) == {}


@pytest.mark.parametrize(
    "overrides",
    [["ema.decay=0.999"], ["ema.half_life=null"], ["generator.attention={}"], ["optim.decay=linear"],
     ["generator.attention.8.name=self_attention", "generator.attention.8.value_ratio=0.25"]],
    ids=str,
)  # fmt: skip
def test_changed_configs_round_trip(tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(None, overrides)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
    assert config != Config.model_validate(load_config(None).to_dict())


def test_every_group_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training:\n  # steps: 3\ngenerator:\n")
    assert load_config(tmp_path / "c.yaml") == load_config(None)


def test_d_steps_follow_the_classes() -> None:
    assert load_config(None).d_steps == 1
    assert load_config(None, ["data.num_classes=0"]).d_steps == 5
    assert load_config(None, ["data.num_classes=0", "optim.d_steps=2"]).d_steps == 2


def test_differences_name_the_settings() -> None:
    a, b = load_config(None), load_config(None, ["training.steps=3", "generator.attention.16.pool=false"])
    assert differences(a, b) == {"training.steps": (100_000, 3), "generator.attention.16.pool": (None, False)}
    assert set(differences(a, load_config(None, ["generator.attention={}"]))) >= {"generator.attention.16.name"}


def test_replaced_changes_what_it_is_told() -> None:
    config = load_config(None, ["ema.decay=0.9", "generator.attention.16.pool=false"])
    changed = replaced(config, {"data": {"num_classes": 7}})
    assert differences(config, changed) == {"data.num_classes": (None, 7)}


def test_shipped_configs_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is a shipped config, unless a file of that name exists."""
    monkeypatch.chdir(tmp_path)
    assert load_config("shapes32").training.steps == 2400
    assert load_config("attention/cbam").generator.attention[16].name == "cbam"
    (tmp_path / "shapes32").write_text("seed: 5")
    assert load_config("shapes32").seed == 5
    assert all(shipped_configs().values())


def choices(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, object]]:
    """(setting, a value as the documentation writes it, what it means), for every setting with known values."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        for part in (kind,) if get_origin(kind) in (tuple, dict) else (kind, *get_args(kind)):
            if isinstance(part, type) and issubclass(part, BaseModel) and part is kind:
                yield from choices(part, f"{prefix}{name}.")
            elif get_origin(part) is Literal:
                yield from ((prefix + name, str(value), value) for value in get_args(part))
            elif part is bool:
                yield from ((prefix + name, word, word in ("true", "yes", "on")) for word in
                            ("true", "yes", "on", "false", "no", "off"))  # fmt: skip
            elif part is float:
                yield prefix + name, "1e-4", 1e-4
            elif part is str:
                yield from ((prefix + name, word, word) for word in ("no", "on", "none", "runs/x", "3"))
            elif part is type(None):
                yield prefix + name, "null", None


@pytest.mark.parametrize(("name", "word", "value"), [
    *choices(),
    ("training.precision", "no", "float32"),
    ("generator.attention", "{16: {name: em_attention, momentum: 1e-1}}", {16: {"momentum": 0.1}}),
    ("generator.attention", "{16: {name: self_attention, pool: off}}", {16: {"pool": False}}),
])  # fmt: skip
def test_every_documented_value_is_read_as_written(tmp_path: Path, name: str, word: str, value: object) -> None:
    """On the command line, in a file, and again from the config that a run writes."""
    *groups, last = name.split(".")
    path = tmp_path / "config.yaml"
    path.write_text("{" + "".join(f"{group}: {{" for group in groups) + f"{last}: {word}" + "}" * len(groups) + "}")
    needed = ["data.num_classes=0"] if name == "generator.hierarchical" else []
    configs = [load_config(None, [f"{name}={word}", *needed]), load_config(path, needed)]
    (tmp_path / "written.yaml").write_text(configs[0].to_yaml())
    for config in [*configs, load_config(tmp_path / "written.yaml")]:
        found: Any = config
        for part in name.split("."):
            found = getattr(found, part)
        if isinstance(value, dict):
            found = {place: spec.options for place, spec in found.items()}
        assert found == value
