"""`sagan evaluate`: the coherence of samples of a snapshot that was trained on shapes."""

import json
from pathlib import Path

from sagan.errors import UserError
from sagan.files import append_json_line


def evaluate_command(source: str, num: int, as_json: bool) -> None:
    """Score `num` samples; a run's result is appended to its metrics.jsonl."""
    if num < 2:
        raise UserError(f"--num {num}: at least 2 samples are needed")
    from sagan.data.shapes import CLASSES
    from sagan.evaluation.coherence import coherence
    from sagan.sampling import default_labels
    from sagan.showing import samples
    from sagan.snapshot import load_snapshot

    generator = load_snapshot(source)
    if generator.class_names not in (CLASSES, ()):
        raise UserError(f"{source}: was not trained on shapes; coherence is defined on them alone")
    seeds = range(num)
    labels = default_labels(seeds, generator.num_classes)
    scores = coherence(samples(generator, seeds, labels), None if labels is None else labels.numpy()).to_dict()
    if (Path(source) / "snapshots").is_dir():
        append_json_line(Path(source) / "metrics.jsonl", {"num": num, **scores})
    if as_json:
        print(json.dumps({**scores, "protocol": {"num": num, "seeds": f"0-{num - 1}", "labels": "seed mod classes"}}))
        return
    for name, value in scores.items():
        print(f"{name:20} {value:8.4f}")
