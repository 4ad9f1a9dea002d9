"""Wrong commands, run in the folder of bad_input_workspace.py, and words that the error message must contain."""

import sys
from dataclasses import dataclass

from standin import NAME

ABSENT = "cuda" if sys.platform == "darwin" else "mps"  # a device that this machine cannot have
LONG = "x" * 300
SAME = "images/same"  # three images of 40x40 pixels


@dataclass(frozen=True)
class Case:
    """A command and words of its message.

    `began`: files written before the mistake can be found stay. `limit`: largest size of a file.
    `environment`: as set by a launcher.
    """

    command: str
    words: str
    began: bool = False
    limit: int | None = None
    environment: tuple[tuple[str, str], ...] = ()


def table(template: str, lines: str) -> list[Case]:
    """One case per line: a value for {} in the template | words."""
    rows = [line.split(" | ") for line in lines.strip().splitlines()]
    return [Case(template.replace("{}", value.strip()), words.strip()) for value, words in rows]


COMMAND_LINE = table(
    "{}",
    f"""
    trian | trian
    train | Missing argument 'CONFIG'
    train c.yaml | Missing option '--out'
    train c.yaml --outt out | No such option
    train c.yaml --out '' | '--out': it is empty
    train c.yaml --out out --device gpu | 'gpu' is not one of
    train c.yaml --out out --device {ABSENT} | {ABSENT}
    train nope.yaml --out out | nope.yaml: no such config file
    train shape32 --out out | did you mean shapes32?
    train {LONG}.yaml --out out | not readable
    train bad.yaml --out out | bad.yaml: not readable as YAML
    train c.yaml --dry-run --set data.source=nope | nope: no such folder or file
    configs nope | nope: no such config file
    compare | Missing argument 'RUNS...'
""",
)
SETTINGS = table("train c.yaml --out out --set '{}'", """
    training.stepz=3 | did you mean training.steps?
    training.steps=many | training.steps
    training.precision=fp16 | training.precision
    training.trackers=[nope] | training.trackers: nope
    generator.attention.16=self | unknown attention 'self'; known: self_attention
    generator.attention.8.pol=2 | known: pool
    generator.attention.8.pool=many | self_attention: pool is 'many'
    generator.widths=[1,1,1,1] | self_attention: 2 channels
    discriminator.attention.16={name: selective_kernel, place: conv} | equal widths
    evaluate.metrics=[fidd] | did you mean fid?
""")  # fmt: skip
MECHANISMS = table(
    "train c.yaml --out out --set 'generator.attention.8={name: {}}'",
    """
    self_attention, gain: vector | gain is 'vector'
    self_attention, place: conv | place 'conv'
    augmented_conv, place: conv, gain: scalar | no gain
    augmented_conv, heads: 3 | augmented_conv: 3 heads
    non_local, form: cosine | form is 'cosine'
    non_local, form: dot_product, scale: true | scale
    double_attention, key_ratio: -1 | key_ratio is -1
    em_attention, bases: 0 | bases is 0
    em_attention, momentum: 2 | momentum is 2
    em_attention, gradient: none | gradient is 'none'
    dual_attention, sign: 2 | sign is 2
    gated_positional, heads: 3 | 3 heads
    gated_positional, locality: 0 | locality is 0
    transformer, heads: 5 | 5 heads
    squeeze_excitation, reduction: 0 | reduction is 0
    squeeze_excitation, bases: 3 | no option 'bases'
    selective_kernel, paths: 1 | paths is 1
    cbam, kernel: 4 | kernel is 4
    spatial_transformer, padding: wrap | padding is 'wrap'
    residual_block, equal: time | equal is 'time'
""",
)
SOURCES = table(
    "train c.yaml --out out --set 'data.source={}'",
    f"""
    null | data.source
    nope | nope: no such folder or file
    ~nobody_here/x | ~nobody_here/x
    {LONG} | the name is too long
    a_file | a_file: not an .npz
    shapes:0 | shapes:COUNT
    torchvision:cifar11 | did you mean cifar10?
    src/broken.npz | src/broken.npz: not readable
    data_truncated | data_truncated/images.npy
""",
)
TRAINING = [
    *table(
        "train c.yaml --out {}",
        f"""
    out --set data.resolution=64 | data: prepared at 32x32
    out --set data.num_classes=7 | data.num_classes is 7
    out --set data.source=shapes:8 --set data.num_classes=7 | shapes:8 has 4 classes
    out --init-from '' | '--init-from': it is empty
    out --init-from nope/nope/nope | nope/nope/nope: no such file or folder
    out --init-from src | src: not a snapshot
    out --init-from a_file | a_file
    out --init-from run_cut_checkpoint | run_cut_checkpoint
    out --init-from run --set generator.channels=4 | has shape
    out --init-from snapshot --set data.resolution=64 --set data.source=data_64 | norm1.gain.weight
    run --set seed=1 | seed: 0 in the run, 1 now
    run_cut_checkpoint --set training.steps=4 | run_cut_checkpoint
    run_other_data | other data
    run_no_record | run_no_record/run.json
    run_locked --set training.steps=4 | run_locked: another process
    samples | samples: is not a run
    a_file | a_file: is a file
    a_file/out | a_file/out
    {LONG} | the name is too long
    """,
    ),
    Case("train wide.yaml --out run_wide --set training.steps=4", "this network needs"),
    Case("train c.yaml --out out --set optim.generator.lr=1e30", "stopped", began=True),
    Case("train c.yaml --out out", "3 processes", environment=(("WORLD_SIZE", "3"), ("RANK", "0"))),
]
WHILE_TRAINING = table(
    "train c.yaml --out out --set evaluate.every=1 --set evaluate.{}",
    f"""
    metrics=[is] --set evaluate.num=9 | is: needs at least 10
    metrics=[intra_fid] --set data.num_classes=0 | intra_fid
    metrics=[] | evaluate.metrics
    metrics=[coherence] --set evaluate.best=fid | evaluate.best: 'fid'
    metrics=[coherence] --set data.source=pair_data | coherence
    metrics=[fid] --set evaluate.backbone=incepton | did you mean inception?
    metrics=[fid] | not the official file
    metrics=[fid] --set evaluate.backbone_weights=nope | nope: no such weights file
    metrics=[fid] --set evaluate.backbone={NAME} --set evaluate.reference=data_64 | data_64: prepared at 64x64
""",
)
PREPARE = [
    *table(
        "prepare {}",
        f"""
    shapes:8 --out out --resolution 33 | resolution 33
    src/pair --out src/pair/out | src/pair/out
    src/pair --out pair_data | pair_data
    torchvision:lsun --out out | torchvision:lsun
    shapes:8 --out samples | samples
    shapes:8 --out data | source shapes:64
    shapes:8 --out a_file/out | a_file: is a file
    shapes:8 --out {LONG} | the name is too long
    shapes:1000000000000 --out out | GB
    """,
    ),
    Case("prepare shapes:64 --out out", "the disk is full", limit=20_000),
]
NOT_WRITABLE = [  # by anybody, root included
    Case("train c.yaml --out /proc/out", "/proc/out"),
    Case("train c.yaml --out /sys/out", "/sys/out: no permission"),
    Case("prepare shapes:8 --out /sys/out", "/sys"),
    Case("sample snapshot --num 2 --out /sys/out", "/sys/out: no permission"),
] if sys.platform == "linux" else []  # fmt: skip
SNAPSHOTS = table(
    "sample {} --out out --num 2",
    f"""
    run/nope | run/nope
    nope/nope/nope | nope/nope/nope: no such file or folder
    src | src: not a snapshot
    a_file | a_file
    run_no_snapshot | run_no_snapshot/snapshots
    {LONG} | the name is too long
    snapshot_truncated | snapshot_truncated/model.safetensors
""",
)
SAMPLING = [
    *table(
        "sample snapshot --out {}",
        f"""
    out | --seeds
    out --num many | 'many'
    out --seeds 0-9,3 | 3 is given twice
    out --num 1 --truncation 0 | --truncation 0
    out --num 1 --interpolate 0 1 | --interpolate
    out --interpolate 0 | '--interpolate' requires 2 arguments
    out --interpolate 0 1 --classes 0-2 | classes
    out --seeds 0-9999999 --classes 0,1 | 20000000 images
    out --num 2 --classes crss | did you mean cross?
    out --num 2 --device {ABSENT} | --device {ABSENT}
    out --num 5000 --grid | --grid: 5000 images
    samples --num 2 --truncation 0.5 | samples
    samples_unknown --num 2 | samples.json
    samples_broken --num 2 --grid | 00001.png: not readable as an image
    samples_broken --num 2 --npz | samples.npz: not readable
    samples_npz --num 3 --npz | samples_npz
    a_file --num 2 | a_file: is a file
    """,
    ),
    Case("sample unconditional --num 2 --classes 0 --out out", "no classes"),
    Case("sample snapshot --num 2 --npz --out out", "--npz", environment=(("WORLD_SIZE", "2"),)),
]
OTHER_IMAGES = table(
    f"evaluate {{}} --backbone {NAME}",
    f"""
    images/cut --reference {SAME} | 1.png: not readable as an image
    data --reference nope | nope: no such folder or file
    data --reference data_64 | data_64: its images are 64x64
    data --reference stats/flipped.npz | stats/flipped.npz
    data --metrics kid --reference stats/whole.npz | kid: needs images
    {SAME} --reference images/mixed | images/mixed
    {SAME} --metrics intra_fid --reference {SAME} | intra_fid: needs labels
    images/prepared_two --reference images/prepared_alone --metrics intra_fid | class 1
    data --reference images/prepared_two --metrics intra_fid | class 2
    {SAME} --reference {SAME} --metrics recall | recall: needs at least 6 images
    {SAME} --metrics is | is: needs at least 10 images
""",
)
EVALUATION = [
    *table("evaluate {}", f"""
    snapshot --metrics fidd | did you mean fid?
    snapshot --metrics fid,kid,fid | fid is given twice
    snapshot --num 1 | x>=2
    snapshot --truncation nan | --truncation nan
    snapshot --labels some | 'some' is not one of
    run --repeats 2 --modes | --repeats and --modes
    snapshot --modes | --modes
    snapshot --metrics nearest --reference data | nearest
    {SAME} --truncation 1 | --truncation
    run --which best | run
    snapshot --metrics coherence --out src | src: is a folder
    snapshot --out a_file/x.json | a_file/x.json
    snapshot --metrics coherence --inception-weights a_file | --inception-weights
    {SAME} --vgg16-weights a_file | --vgg16-weights
    snapshot --metrics fid | --reference
    snapshot_not_shapes --metrics coherence | shapes
    snapshot --device {ABSENT} | --device {ABSENT}
    run_linked --num 8 | metrics.jsonl: is a link
    nope | nope: no such folder
    a_file | a_file
    src/empty | src/empty: holds no readable image
    images/mixed | 2.png
    src/noise/square | 2.png: not readable as an image
    src/nameless.npz | src/nameless.npz: holds no array `images`
    images/tiny --metrics coherence | 16x16
    {SAME} --num 4 | 4 images
    run_no_snapshot | run_no_snapshot/snapshots
    run_cut_checkpoint --modes | run_cut_checkpoint
    run_not_resolved --modes | data.num_classes
    data --metrics coherence --reference stats/whole.npz | stats/whole.npz
    {SAME} --backbone incepton | did you mean inception?
    {SAME} --metrics is --backbone vgg16 | vgg16
    {SAME} | not the official file
    {SAME} --metrics lpips_diversity | cannot be downloaded
    {SAME} --reference {SAME} --inception-weights nope | nope: no such weights file
    {SAME} --reference {SAME} --inception-weights weights/other.pth | weights/other.pth: not the weights of inception
    {SAME} --metrics is --inception-weights weights/inception_empty.pth | weights/inception_empty.pth
    {SAME} --reference {SAME} --inception-weights weights/inception_huge.pth | not finite
    {SAME} --backbone dinov2-vit-b-14 --backbone-weights weights/other.pth | dinov2-vit-b-14
    {SAME} --metrics lpips_diversity --lpips-weights weights/other.pth | torchvision
    images/small --metrics lpips_diversity --lpips-weights weights/alexnet.pth | 24x24
    """),
    Case(f"evaluate run --reference images/many_classes.npz --labels reference --backbone {NAME}", "5 classes",
         began=True),
]  # fmt: skip
DIVERGENCE = [
    Case(f"train c.yaml --out out --set training.samples_per_class=2 --set divergence.spread=0.99 {options}", words,
         began=True)
    for options, words in (
        ("--set training.sample_every=1", "at step 1"),
        ("--set training.sample_every=1 --set divergence.action=rollback", "at step 1"),
        ("--set training.sample_every=2 --set training.checkpoint_every=1 --set divergence.action=rollback "
         "--set divergence.times=1", "at step 2"),
    )
]  # fmt: skip
STATISTICS = table(
    "stats {}",
    f"""
    data | Missing option '--out'
    data --out out.txt | out.txt
    src/pair --out out.npz | src/pair: not prepared
    data --out out.npz --resolution 64 | data: prepared at 32x32
    stats/whole.npz --out out.npz --resolution 32 --backbone {NAME} | stats/whole.npz
    data --out out.npz | not the official file
    data --out a_file/out.npz --backbone {NAME} | a_file/out.npz
    images/prepared_one --out out.npz --backbone {NAME} | fid: needs at least 2 images
""",
)
COMPARISON = table(
    "compare {}",
    """
    run '' | it is empty
    run nope | nope: no such folder
    run a_file | a_file: is a file
    run src | src: not a run
    run ./run_wide/../run | is given twice
    run run_cut_record | run_cut_record/run.json: not readable as JSON
    run_cut_score | line 2 is damaged
    run --metric fidd | did you mean fid?
    run --metric fid | --metric fid
    run --published cifar11 | did you mean cifar10?
    run --baselines | --baselines
    run --out out.pdf | --out out.pdf
    run --out images/folder.png | images/folder.png
    run_cut_grid --out out.png | 00000002.png: not readable as an image
""",
)
ATTENTION = table(
    "attend {} --out out",
    """
    no_attention | no attention
    nope | nope: no such folder
    snapshot --points many | --points many
    snapshot --seeds 0-500 | 501 images
    snapshot --points 3 --at 1,1 | --points and --at
    snapshot --at 3 | --at '3'
    snapshot --layers attention.9x9 | did you mean
    snapshot --network both | snapshot
    run --images src/pair | --images
    run --network both --images nope | nope: no such folder
    run --network both --images src/pair | src/pair
    run --network both --images src/noise | square/2.png
    run --network discriminator --html | --html
    snapshot --mp4 | --mp4
    snapshot --animate snapshots | --animate snapshots
    snapshot_channels --html | --html
    snapshot_huge_weights --html | not finite
    snapshot --tile 9 | 64<=x<=1024
""",
)
EXPORT = table(
    "export {}",
    """
    snapshot --out g.bin | --out g.bin
    snapshot --out g.pt2 --opset 18 | --opset 18
    snapshot --out images/folder.onnx | images/folder.onnx: is a folder
    snapshot --out a_file/g.onnx | a_file/g.onnx
    nope --out g.onnx | nope: no such folder
""",
)
ABLATION = [
    *table("ablate c.yaml {}", """
    --out out | --vary
    --vary generator.z_dim=4,8 | --out
    --out out --vary 'generator.z_dim=[1' | not readable as YAML
    --out out --vary seed=1,2 | --vary seed
    --out out --vary evaluate.num=1,2 | --vary evaluate.num
    --out out --vary generator.z_dim=4,8 | evaluates nothing
    --out src --vary loss.r1=0,1 --set evaluate.every=1 --set evaluate.metrics=[coherence] | src
    --out out --vary loss.r1=0,1 --jobs 2 --devices 0 | --jobs and --devices
    --out out --vary data.resolution=32,48 --set evaluate.every=1 --set evaluate.metrics=[coherence] | resolution=48
    """),
    Case("ablate src", "src: not an ablation"),
    Case("ablate c.yaml --out out --vary loss.r1=0,1", "start it without",
         environment=(("WORLD_SIZE", "2"), ("RANK", "0"))),
]  # fmt: skip
CASES = [
    *COMMAND_LINE, *SETTINGS, *MECHANISMS, *SOURCES, *TRAINING, *WHILE_TRAINING, *PREPARE, *NOT_WRITABLE, *SNAPSHOTS,
    *SAMPLING, *OTHER_IMAGES, *EVALUATION, *DIVERGENCE, *STATISTICS, *COMPARISON, *ATTENTION, *EXPORT, *ABLATION,
]  # fmt: skip
