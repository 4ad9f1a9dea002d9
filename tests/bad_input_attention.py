"""`sagan attend`, wrongly used, in the folder that bad_input_workspace.py builds."""

from typing import Any

from bad_input_cases import Case


def attend(options: str, says: str, **more: Any) -> Case:
    return Case(f"attend {options} --out out", says, **more)


ATTENTION = [
    attend("no_attention", "this generator has no attention, so there is nothing to show"),
    attend("no_attention --network discriminator", "this discriminator has no attention"),
    attend("src", "src: holds images; give a run, a checkpoint, a snapshot or a Hub id"),
    attend("data", "data: holds images; give a run"),
    attend("nope", "nope: no such folder (an id on the Hub would be USER/NAME)"),
    attend("snapshot --points many", "--points many: expected a number from 1 to 32, random or grid"),
    attend("snapshot --points 33", "--points 33: expected a number from 1 to 32"),
    attend("snapshot --seeds x", "expected numbers and ranges, such as 0-63"),
    attend("snapshot --seeds 0-500", "501 images requested; a figure shows at most 128"),
    attend("snapshot --points 3 --at 1,1", "--points and --at exclude each other; give one of them"),
    attend("snapshot --at 3", "--at '3': expected ROW,COLUMN pairs, such as 8,8;20,12"),
    attend("snapshot --at '1,1;2'", "--at '2': expected ROW,COLUMN pairs"),
    attend("snapshot --at '" + ";".join(["1,1"] * 33) + "'", "--at: 33 points, a figure shows at most 32"),
    attend("snapshot --at 32,0", "point 32,0 lies outside the image of 32 rows and 32 columns"),
    attend("snapshot --layers attention.9x9", "--layers 'attention.9x9': no such map; did you mean"),
    attend("snapshot --layers x", "--layers 'x': no such map; known: attention.8x8"),
    attend("snapshot --network both", "snapshot: a snapshot holds the generator alone; give its run or a checkpoint"),
    attend("run --images src/pair", "--images needs --network discriminator or both"),
    attend("run --network both --images src/pair", "src/pair: the discriminator needs the class of every"),
    attend("run_unconditional --network both --images src/noise/b", "noise/b/2.png: not an image"),
    attend("run --network discriminator --html", "--html shows the generator; give --network generator"),
    attend("snapshot --mp4", "--mp4 needs --animate snapshots or path"),
    attend("snapshot --animate snapshots", "--animate snapshots needs a run"),
    attend("run_cut_checkpoint --network both", "run_cut_checkpoint: this run has no whole checkpoint"),
    attend("snapshot_channels --html", "--html: no map lies on the image (channel"),
    attend("snapshot_huge_weights --html", "its weights are not finite, so training has diverged"),
    attend("snapshot --tile 9", "9 is not in the range 64<=x<=1024"),
    Case("attend snapshot --out a_file", "a_file: is a file, a folder was expected"),
]
