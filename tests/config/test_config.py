"""Settings: from YAML and --set to a complete config, and one clear line for every mistake."""

from pathlib import Path

import pytest

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
        ("training.stepz=3", "unknown setting training.stepz; did you mean training.steps?"),
        ("optim.generator.learning_rate=1", "unknown setting optim.generator.learning_rate; known: lr, betas, eps"),
        ("zzz=1", "unknown setting zzz; known: seed,"),
        ("training.steps=many", "training.steps: input should be a valid integer"),
        ("training.steps=-1", "training.steps: input should be greater than 0, not -1"),
        ("training.steps=[1]", "training.steps: "),
        ("training.steps.more=3", "training.steps: "),
        ("data=3", "data: "),
        ("data.resolution=48", "data: resolution 48 is not one of 32, 64, 128, 256"),
        ("data.resolution=[32]", "data.resolution: "),
        ("loss.name=hing", "loss.name: input should be 'hinge', 'non_saturating' or 'wasserstein', not 'hing'"),
        ("augment.policy=[colour]", "augment.policy.0: input should be 'color', 'translation' or 'cutout'"),
        ("generator.widths=[1, 2]", "generator.widths needs 4 numbers at resolution 32, has 2"),
        ("generator.attention={64: self_attention}", "generator.attention: no block outputs 64x64 at resolution 32; "
         "known: 8, 16, 32"),
        ("generator.attention={4: self_attention}", "generator.attention: no block outputs 4x4"),
        ("discriminator.attention={32: self_attention}", "discriminator.attention: no block outputs 32x32"),
        ("discriminator.attention={4: self_attention}", "discriminator.attention: no block outputs 4x4"),
        ("generator.attention.x=self_attention", "generator.attention.x"),
        ("generator.attention.16=3", "generator.attention.16: "),
        ("generator.attention.16.place=befor", "generator.attention.16.place: input should be 'after', 'branch'"),
        ("generator.attention={16: {pool: false}}", "generator.attention.16.name: field required"),
        ("optim.accumulation=3", "training.batch_size 64 is not divisible by optim.accumulation 3"),
        ("ema={decay: 0.9, half_life: 100}", "ema: give decay or half_life, not both"),
        ("training.steps", "--set training.steps: expected NAME=VALUE"),
        ("=3", "--set =3: expected NAME=VALUE"),
        ("training.steps=[1", "--set training.steps=[1: the value is not readable as YAML"),
        ("training.steps=!!python/name:os.system", "the value is not readable as YAML"),
        ("seed.x.y=3", "seed: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(override: str, expected: str) -> None:
    """Breaks when a mistake passes, ends in a traceback, or the message does not name the setting and what is right."""
    assert expected in refusal([override])


@pytest.mark.parametrize("number", ["optim.generator.lr=.inf", "optim.generator.lr=.nan", "loss.r1=.inf", "seed=1.5"])
def test_numbers_that_cannot_work_are_refused(number: str) -> None:
    """Breaks when a run starts with a setting that must end in NaN."""
    assert number.partition("=")[0] in refusal([number])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {steps: [", "not readable as YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("data: !!python/object/new:os.system []", "not readable as YAML"),
        ("- 1", "a config is a mapping of settings, this is a list"),
        ("hello", "a config is a mapping of settings, this is a str"),
        ("1: 2", "keys should be strings"),
        ("trainin: {steps: 3}", "unknown setting trainin; did you mean training?"),
        ("training: &a {steps: *a}", ""),
        ("training: {steps: 3}\ntraining: {batch_size: 8}", "training"),
    ],
    ids=["cut", "tag", "inner-tag", "list", "text", "number-key", "unknown", "recursive", "duplicate"],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    """Breaks when a file runs code, ends in a traceback, or loses settings silently (a group written twice)."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refusal([], path)
    assert "bad.yaml" in message
    assert expected in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Breaks when the path of a config is wrong and the message does not say so."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no such config file" in refusal([], tmp_path / "none.yaml")
    assert "not readable" in refusal([], tmp_path)
    assert "not readable" in refusal([], tmp_path / "binary.yaml")


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_defaults_follow_the_resolution(resolution: int) -> None:
    """Breaks when a resolution alone does not give a complete config."""
    config = load_config(None, [f"data.resolution={resolution}"])
    at = {32: 16, 64: 32, 128: 32, 256: 64}[resolution]
    assert list(config.generator.attention) == list(config.discriminator.attention) == [at]
    assert config.generator.attention[at].name == "self_attention"
    assert len(config.generator.widths) == resolution.bit_length() - 2


def test_values_are_yaml_and_later_ones_win() -> None:
    """Breaks when overrides are taken as text, or in another order."""
    config = load_config(None, ["training.steps=3", "data.flip=true", "training.steps=5", "optim.generator.lr=2e-4",
                                "augment.policy=[color, cutout]", "ema.half_life=null"])  # fmt: skip
    assert (config.training.steps, config.data.flip, config.optim.generator.lr) == (5, True, 2e-4)
    assert config.augment.policy == ("color", "cutout")
    assert config.ema.half_life is None


def test_attention_can_be_removed_moved_and_changed(tmp_path: Path) -> None:
    """Breaks when a documented law of `attention` does: {} removes all, null removes one, a dotted name sets one."""
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
    """Breaks when the config.yaml of a run, used as a config again, takes overrides otherwise than the file it came
    from (its resolutions were once quoted, and 16 beside '16')."""
    (tmp_path / "config.yaml").write_text(load_config(None).to_yaml())
    found = load_config(tmp_path / "config.yaml", [override])
    assert found == load_config(None, [override])


@pytest.mark.parametrize("setting", ["betas: [0.5, 0.9]", "eps: 1.0e-6"])
def test_one_setting_of_an_optimizer_can_be_given_alone(tmp_path: Path, setting: str) -> None:
    """Breaks when giving one setting of a group demands the others: files hold only what differs from the defaults."""
    (tmp_path / "c.yaml").write_text(f"optim: {{generator: {{{setting}}}, discriminator: {{{setting}}}}}")
    config = load_config(tmp_path / "c.yaml")
    assert (config.optim.generator.lr, config.optim.discriminator.lr) == (1e-4, 4e-4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolved_configs_round_trip(tmp_path: Path, path: Path) -> None:
    """Breaks when config.yaml of a run does not give back the config that it was written from."""
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
    """Breaks when a default comes back that the user had changed."""
    config = load_config(None, overrides)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
    assert config != Config.model_validate(load_config(None).to_dict())


def test_every_group_may_be_empty(tmp_path: Path) -> None:
    """Breaks when a heading whose settings are all commented out is refused."""
    (tmp_path / "c.yaml").write_text("training:\n  # steps: 3\ngenerator:\n")
    assert load_config(tmp_path / "c.yaml") == load_config(None)


def test_d_steps_follow_the_classes() -> None:
    """Breaks when unconditional configs do not default to five discriminator steps (1:1 collapses)."""
    assert load_config(None).d_steps == 1
    assert load_config(None, ["data.num_classes=0"]).d_steps == 5
    assert load_config(None, ["data.num_classes=0", "optim.d_steps=2"]).d_steps == 2


def test_differences_name_the_settings() -> None:
    """Breaks when a changed setting is not reported under the name that --set takes, or an equal one is."""
    a, b = load_config(None), load_config(None, ["training.steps=3", "generator.attention.16.pool=false"])
    assert differences(a, b) == {"training.steps": (100_000, 3), "generator.attention.16.pool": (None, False)}
    assert set(differences(a, load_config(None, ["generator.attention={}"]))) >= {"generator.attention.16.name"}


def test_replaced_changes_what_it_is_told() -> None:
    """Breaks when replacing one setting loses or changes another."""
    config = load_config(None, ["ema.decay=0.9", "generator.attention.16.pool=false"])
    changed = replaced(config, {"data": {"num_classes": 7}})
    assert differences(config, changed) == {"data.num_classes": (None, 7)}


def test_shipped_configs_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without a path is a config that comes with sagan, unless a file of that name exists."""
    monkeypatch.chdir(tmp_path)
    assert load_config("shapes32").training.steps == 2400
    assert load_config("attention/cbam").generator.attention[16].name == "cbam"
    (tmp_path / "shapes32").write_text("seed: 5")
    assert load_config("shapes32").seed == 5
    assert all(shipped_configs().values())
