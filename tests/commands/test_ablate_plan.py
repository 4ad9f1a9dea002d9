"""`sagan ablate`: what varies, under which names, and what is refused before anything is computed or written."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import sagan
from tiny import TINY, files_of

from sagan.commands.ablate_options import Options
from sagan.commands.ablate_plan import Ablation, Outcome, merged, plan_of, read_ablation, save_ablation
from sagan.commands.ablate_runs import environment_of
from sagan.commands.ablate_vary import parse_axis, variants_of
from sagan.errors import UserError

PLACE = "generator.attention.8"
SCORED = {"every": 2, "num": 4, "metrics": ["coherence"]}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {"source": "shapes:40"}, "evaluate": SCORED}))
    return path


def names(*axes: str) -> list[str]:
    return [variant.name for variant in variants_of([parse_axis(text) for text in axes])]


def planned(config: Path, *vary: str, seeds: str | None = None, overrides: tuple[str, ...] = ()) -> Any:
    return plan_of(Options(config, vary, seeds, overrides, out=config.parent / "out"))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert sagan("ablate", *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


def test_values_are_yaml_split_at_the_outer_commas() -> None:
    """Breaks when a comma inside brackets splits, null becomes a word, or keys that vary together get other values."""
    axis = parse_axis("a.16+b.16=self_attention, {name: non_local, pool: after},null,[1, 2],0.5,true")
    assert axis.keys == ("a.16", "b.16")
    assert axis.values == ("self_attention", {"name": "non_local", "pool": "after"}, None, [1, 2], 0.5, True)
    variant = variants_of([axis])[1]
    assert variant.overrides == [f'{key}={{"name": "non_local", "pool": "after"}}' for key in ("a.16", "b.16")]
    assert parse_axis("a=x=y").values == ("x=y",)


def test_variants_have_short_names_that_folders_can_have() -> None:
    """Breaks when a name does not tell variants apart, cannot be a folder, or changes when values are added."""
    assert names(f"{PLACE}=self_attention,{{name: non_local, pool: after}},null,{{name: cbam}}") == [
        "self_attention", "non_local,pool=after", "none", "cbam",
    ]  # fmt: skip
    assert names("generator.attention={},{8: cbam, 16: non_local}", "generator.widths=[4, 2],[8]") == [
        f"attention={attention}+widths={widths}"
        for attention in ("none", "8=cbam,16=non_local")
        for widths in ("4,2", "8")
    ]
    assert names("optim.generator.lr=0.1,1.0e-5") == ["lr=0.1", "lr=1e-05"]
    both = names("generator.attention.8=null,cbam", "discriminator.attention.8=null,cbam")
    assert both[:2] == ["generator=none+discriminator=none", "generator=none+discriminator=cbam"]
    assert names(f"{PLACE}=null", "optim.generator.lr=0.1") == ["attention.8=none+lr=0.1"]
    assert names("optim.generator.lr=1", "optim.discriminator.lr=2") == [
        "optim.generator.lr=1+optim.discriminator.lr=2"
    ]
    odd = names("data.source=a/b,a_b,../c,''", f"{PLACE}=null")
    assert len(set(odd)) == 4
    assert all("/" not in name and not name.startswith((".", "-")) for name in odd)
    assert len(names("a=" + "x" * 500)[0]) <= 100


def test_several_settings_give_every_combination(config: Path) -> None:
    """Breaks when a combination is missing, a setting does not arrive, or runs do not go seed by seed."""
    plan = planned(config, f"{PLACE}=null,self_attention", "optim.generator.lr=0.1,0.2", seeds="3,5")
    rates = [(bool(c.generator.attention), c.optim.generator.lr) for c in plan.configs.values()]
    assert rates == [(False, 0.1), (False, 0.2), (True, 0.1), (True, 0.2)]
    assert [seed for _, seed in plan.runs] == [3] * 4 + [5] * 4
    assert planned(config, "loss.r1=1", overrides=("seed=7",)).runs == [("r1=1", 7)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--vary: nothing varies; such as"),
        (["--vary", "loss.r1"], "expected KEY=VALUE,VALUE"),
        (["--vary", "+loss.r1=1"], "expected KEY=VALUE,VALUE"),
        (["--vary", "loss.r1="], "no value is given"),
        (["--vary", "loss.r1=[1,2"], "not readable as YAML"),
        (["--vary", "loss.r1=2020-01-01"], "not readable as YAML"),
        (["--vary", "seed=1,2"], "--vary seed: is what --seeds is for"),
        (["--vary", "evaluate.num=1,2"], "--vary evaluate.num: variants must be scored alike"),
        (["--vary", "loss.r1=1,1"], "the variant r1=1 comes twice"),
        (["--vary", "loss.r1=1", "--vary", "loss.r1=2"], "loss.r1 is varied twice"),
        (["--vary", "loss.r1=1,1.0"], "r1=1.0 and r1=1 are the same settings"),
        (["--vary", f"{PLACE}=null", "--set", "evaluate.every=0"], "evaluates nothing, so variants could not be"),
        (["--vary", f"{PLACE}=null", "--set", "evaluate.metrics=[fdi]"], "did you mean fid?"),
        (["--vary", "loss.r1=1,-1"], "variant r1=-1: "),
        (["--vary", "losses.r1=1"], "did you mean loss?"),
        (["--vary", "generator.attention.7=null,cbam"], "no block outputs 7x7"),
        (["--vary", "loss.r1=1", "--seeds", "3-1"], "a range goes up"),
        (["--vary", "loss.r1=1", "--jobs", "2", "--devices", "0,1"], "--jobs and --devices exclude each other"),
        (["--vary", "loss.r1=1", "--devices", "0,"], "expected GPUs separated by commas"),
        (["--vary", "loss.r1=1", "--devices", "0,0"], "one is given twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    """Breaks when a mistake in any variant is found only after others were trained, or leaves a folder."""
    assert expected in refusal(capsys, config, "--out", config.parent / "out", *arguments)
    assert not (config.parent / "out").exists()


def test_where_it_goes(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a folder of something else is taken, or a folder that is no ablation is shown as one."""
    vary = ["--vary", "loss.r1=0,1"]
    assert "--out: say in which folder" in refusal(capsys, config, *vary)
    assert "is no ablation and not empty (it holds config.yaml)" in refusal(capsys, config, *vary, "--out", tmp_path)
    assert "is a file" in refusal(capsys, config, *vary, "--out", config)
    assert "no ablation, it has no ablation.json" in refusal(capsys, tmp_path)
    assert "no such config file" in refusal(capsys, tmp_path / "c.yaml", *vary, "--out", tmp_path / "out")


def test_torchrun_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when every process of a launcher would train every run."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refusal(capsys, config, "--vary", "loss.r1=0,1", "--out", config.parent / "out")
    assert "start it without torchrun" in said


def test_runs_at_the_same_time_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when two runs see one GPU, every run uses every core, or a user's own number of threads is overruled."""
    assert environment_of({"A": "b"}, None, 1) == {"A": "b"}
    assert environment_of({"CUDA_VISIBLE_DEVICES": "0,1"}, "1", 2) == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert environment_of({}, None, 3) == {"OMP_NUM_THREADS": "2"}
    assert environment_of({"OMP_NUM_THREADS": "7"}, None, 3) == {"OMP_NUM_THREADS": "7"}
    assert Options(Path("c"), jobs=3).slots == (None, None, None)
    assert Options(Path("c"), devices="0, 3").slots == ("0", "3")


def test_the_record_comes_back(config: Path, tmp_path: Path) -> None:
    """Breaks when ablation.json loses the order of variants, a value's type, an outcome or the parameters."""
    vary = f"{PLACE}+discriminator.attention.8=self_attention,null,{{name: self_attention, pool: false}}"
    new = merged(tmp_path / "out", planned(config, vary, seeds="0-1"))
    runs = new.runs | {("none", 1): Outcome("failed", "because", 2.5, 10.0)}
    save_ablation(Ablation(new.folder, new.base, new.variants, new.configs, runs, {"none": (3, 4)}), {"found": 1})
    found = read_ablation(new.folder)
    assert found is not None
    assert [*found.variants.values()] == [*new.variants.values()]
    assert [*found.variants] == ["self_attention", "none", "self_attention,pool=false"]
    assert (found.base, found.configs, found.runs, found.parameters) == (new.base, new.configs, runs, {"none": (3, 4)})


def test_more_values_and_seeds_are_welcome(config: Path, tmp_path: Path) -> None:
    """Breaks when what was asked for before is forgotten, or its outcome is."""
    first = merged(tmp_path / "out", planned(config, f"{PLACE}=self_attention,null", seeds="0"))
    runs = first.runs | {("none", 0): Outcome("done", "", 1.0, 5.0)}
    save_ablation(Ablation(first.folder, first.base, first.variants, first.configs, runs), {})
    added = planned(config, f"{PLACE}=null,{{name: self_attention, pool: false}}", seeds="0-1",
                    overrides=("training.device=auto", "seed=9"))  # fmt: skip
    both = merged(first.folder, added)
    assert [*both.variants] == ["self_attention", "none", "self_attention,pool=false"]
    assert both.runs[("none", 0)] == Outcome("done", "", 1.0, 5.0)
    assert len(both.runs) == 5


@pytest.mark.parametrize(
    ("vary", "override", "expected"),
    [
        (f"{PLACE}=null", "training.steps=7", "another config (training.steps: 6 there, 7 now); name a new folder"),
        (f"{PLACE}=null", "evaluate.num=5", "another config (evaluate.num: 4 there, 5 now)"),
        ("loss.r1=0,1", "seed=0", f"holds an ablation of {PLACE}, not of loss.r1"),
        (f"{PLACE}={{name: self_attention, pool: true}},{{name: self_attention, place: after}}", "seed=0",
         "the variants self_attention and self_attention,place=after are the same settings"),
    ],
    ids=["steps", "scores", "keys", "same"],
)  # fmt: skip
def test_another_plan_is_refused(config: Path, tmp_path: Path, vary: str, override: str, expected: str) -> None:
    """Breaks when runs that cannot stand in one table get into one folder, or the refusal changes the folder."""
    first = merged(tmp_path / "out", planned(config, f"{PLACE}=self_attention,null"))
    save_ablation(first, {})
    before = files_of(first.folder)
    with pytest.raises(UserError) as caught:
        merged(first.folder, planned(config, vary, overrides=(override,)))
    assert expected in str(caught.value)
    assert files_of(first.folder) == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"keys": [], "variants": [], "runs": [], "parameters": {}}'])
def test_a_damaged_record_is_named(config: Path, tmp_path: Path, content: str) -> None:
    """Breaks when a damaged ablation.json ends in a traceback, or is written over."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "ablation.json").write_text(content)
    with pytest.raises(UserError, match=r"ablation\.json: "):
        merged(folder, planned(config, "loss.r1=0,1"))
    assert (folder / "ablation.json").read_text() == content
