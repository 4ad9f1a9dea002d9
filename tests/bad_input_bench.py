"""`sagan bench`, wrongly used, in the folder that bad_input_workspace.py builds."""

from bad_input_cases import Case
from bad_input_measured import CACHED

BENCH = [
    Case("bench step --variants fast", "unknown variant 'fast'; known: plain, project"),
    Case("bench step --set x=1", "unknown setting x; known: seed, deterministic, data"),
    Case("bench step --rounds 0", "0 is not in the range x>=1"),
    Case("bench step --variants tf32", "--variants: tf32 needs a CUDA device; leave it out", late=True),
    Case("bench attention --names x", "--names: unknown mechanism 'x'; known: self_attention", late=True),
    Case("bench attention --names non_local --explicit", "--explicit is set beside self_attention; --n", late=True),
    Case("bench attention --channels 1", "--channels 1, --resolution 32: self_attention: 1 channels are", late=True),
    Case("bench attention --names cbam,", "--names: unknown mechanism ''", late=True),
    Case("bench attention --rounds 0", "0 is not in the range x>=1"),
    Case("bench evaluate --samples src", "--samples and --reference: give both folders, or neither"),
    Case(
        "bench evaluate --samples nope --reference src", "--samples nope: no such folder; give a folder of", late=True
    ),
    Case("bench evaluate --samples data --reference data_64", "--samples data: its images are not of", late=True),
    Case("bench throughput --batch-sizes 0", "--batch-sizes 0: expected positive numbers, such as 64,128"),
    Case("bench throughput --batch-sizes 64,", "--batch-sizes 64,: expected positive numbers"),
    Case("bench memory --resolutions 48", "--resolutions: '48' is not one of 32, 64, 128, 256"),
    Case("bench throughput --precisions half", "--precisions: unknown precision 'half'; known: no, tf32, bf16"),
    Case("bench throughput --seconds 0", "0.0 is not in the range x>0"),
    Case("bench throughput --out a_file", "a_file: not a file of `sagan bench throughput`; name another"),
    Case("bench throughput --out src", "src: is a folder; name a file"),
    Case("bench throughput --set x=1", "unknown setting x; known: seed, deterministic, data"),
    Case("bench scaling --processes 1", "1 is not in the range x>=2"),
    Case("bench scaling --set x=1", "unknown setting x; known: seed, deterministic, data"),
    Case("bench scaling c.yaml --set training.batch_size=0", "training.batch_size: input should be greater than 0"),
    Case("bench sample nope", "nope: no such folder", late=True),
    Case("bench sample nope.yaml", "nope.yaml: no such config file", late=True),
    Case("bench sample --rounds 0", "0 is not in the range x>=1"),
    Case("bench startup --rounds 0", "0 is not in the range x>=1"),
    Case("bench evaluate --num 1", "1 is not in the range x>=2"),
    Case("bench evaluate --rounds 0", "0 is not in the range x>=1"),
    Case("bench evaluate --inception-weights nope", "nope: no such file of weights", late=True),
    Case("bench evaluate --inception-weights weights/nan.pth", "a holds values that are not finite", late=True),
    Case("bench evaluate", f"{CACHED}: not the published file", late=True),
]
