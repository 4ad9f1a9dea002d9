"""docs/troubleshooting.md is whole: every message that can refuse a user has a row, and no row is idle."""

from pathlib import Path

import pytest
from messages_in_code import Message, explains, messages
from troubleshooting import ELSEWHERE, NOWHERE, rows

TESTS = Path(__file__).parent

HANDS_ON = {  # (file, function) -> whose words these are: no literal text, so nothing to look up here
    ("attention/base.py", "require"): "the rule of the caller, looked up there",
    ("checkpoint.py", "require_whole_checkpoint"): "what is wrong with each checkpoint, in verify_checkpoint",
    ("commands/ablate_check.py", "check_variants"): "a UserError of another process",
    ("cli.py", "main"): "what was raised below",
    ("commands/attended.py", "_read_folder"): "the reason why an image cannot be used, in data/convert.py",
    ("config.py", "make_config"): "what pydantic finds, in its words",
    ("data/build.py", "build"): "the list of refusal(), met by cases",
    ("data/folder.py", "_classes"): "the words of _no_image(), met by cases",
    ("data/prepare.py", "_job"): "a list of problems, met by cases",
    ("data/torchvision_sets.py", "_parts"): "download or find, and torchvision's reason; met by a case",
    ("evaluation/backbones.py", "load_backbone"): "the constant NO_LOGITS, met by a case",
    ("evaluation/backbones.py", "_registered"): "the constant NO_LOGITS, met by a case",
    ("parameters.py", "convert"): "click puts `Invalid value for` before it; met by a case",
    ("placement.py", "placed_attention"): "a rule of a mechanism, looked up there",
    ("rundir.py", "check_same_run"): "a line for each setting, met by cases",
}

NOT_FOR_USERS = {  # file -> words of messages that a command never comes to, because …
    # … a network has no such map, and only a library user calls it on another size
    "attention/augmented_conv.py": ("pools 2x2", "was built for maps of"),
    "attention/non_local.py": ("pools 2x2",),
    "attention/self_attention.py": ("pools 2x2",),
    "attention/base.py": ("points are fractions of height and width",),
    "inspection/points.py": ("points asked for, an image of", "query points asked for"),
    # … the check of the settings comes first
    "attention/selective_kernel.py": ("norm batch needs at least 2 images",),
    # … click or the check of the options comes first
    "commands/bench_evaluate.py": ("both are at least 1",),
    "commands/compare.py": ("no run is named",),
    "data/prepare.py": ("resize … is not one of",),
    "images.py": ("an animation is .gif or .mp4",),
    "sampling.py": ("known: auto",),
    "evaluation/perceptual.py": ("unknown network", "pairs need at least 2 images"),
    # … another check comes first: of the source, of the metrics, of the counts, of the backbone
    "data/dataset.py": ("not a folder of prepared data",),
    "data/npz.py": ("ends within image",),
    "data/shapes.py": ("index … is below 0", "at least 1 is needed", "is not an even number"),
    "evaluation/backbones.py": ("expected uint8 (B, H, W, 3)",),
    "evaluation/coherence.py": ("images need as many labels",),
    "evaluation/feature_metrics.py": (
        "at least 2 of each are needed", "as many images as parts", "logits are not finite", "are needed",
        "use one backbone for both", "features are not finite or above",
    ),
    "evaluation/intra.py": ("only one image of", "no image of"),
    "evaluation/nearest.py": ("nearest images were asked for",),
    "evaluation/reference.py": ("the other metrics need images",),
    "evaluation/statistics.py": (
        "mean and covariance of features need", "features are not finite", "use one backbone", "no such file of",
    ),
    "inspection/figure.py": ("nothing to draw",),
    "inspection/page_data.py": ("the network has no attention module",),
    # … the SHA-256 of the file is taken first
    "evaluation/weights.py": ("weights that cannot be read",),
}  # fmt: skip


def excused(message: Message) -> bool:
    if (message.file, message.function) in HANDS_ON and len(message.text.replace("…", "")) < 30:
        return True
    return any(words in message.text for words in NOT_FOR_USERS.get(message.file, ()))


def test_every_message_in_the_code_has_a_row() -> None:
    """Breaks when somebody adds a UserError, a rule of a mechanism or of a setting, and no row explains it."""
    found = messages()
    assert len(found) > 350, "the walk over the source finds too little"
    table = rows()
    missing = [one for one in found if not excused(one) and not any(explains(row, one.text) for row in table)]
    assert missing == []


def test_no_excuse_is_idle() -> None:
    """Breaks when a message is excused that does not exist any more, or has a row."""
    found = messages()
    assert HANDS_ON.keys() <= {(one.file, one.function) for one in found}
    for file, excuses in NOT_FOR_USERS.items():
        for words in excuses:
            assert any(one.file == file and words in one.text for one in found), (file, words)


@pytest.mark.parametrize("row", [*ELSEWHERE, *NOWHERE])
def test_a_row_without_a_case_is_of_a_message_in_the_code(row: str) -> None:
    """Breaks when the table explains a message that no code has, and no case of test_bad_input.py can tell."""
    assert row in rows()
    assert any(explains(row, one.text) for one in messages())


@pytest.mark.parametrize(("row", "test", "words"), [(row, *where) for row, where in ELSEWHERE.items()])
def test_a_row_that_is_provoked_elsewhere_is(row: str, test: str, words: str) -> None:
    """Breaks when the test is gone that provokes what takes too long for a case."""
    assert words in row
    assert words in (TESTS / test).read_text()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("…: no such file", "…: such a file"),
        ("--num …: at least … images", "--num …: at most … images"),
        ("…: holds nothing", "…: …"),
        ("a long row that says something else", "…: short"),
    ],
)
def test_a_row_must_say_what_the_message_says(row: str, message: str) -> None:
    """Breaks when rows fit messages of other words, so that nothing would ever be missing."""
    assert not explains(row, message)


def test_a_row_may_name_what_the_message_fills_in() -> None:
    """Breaks when a row must be worded by what the code fills in: `--repeats` or `{option}`."""
    assert explains("--num …: at least 2 samples are needed", "… …: at least … samples are needed")
    assert explains("…: it is damaged; …", "…: it is damaged; restore it")
