"""`sagan compare`, wrongly used. It meets what bad_input_measured.py builds."""

from bad_input_cases import Case


def compare(options: str, says: str) -> Case:
    return Case(f"compare {options}", says)


COMPARISON = [
    compare("", "Missing argument 'RUNS...'"),
    compare("run ''", "it is empty"),
    compare("run nope", "nope: no such folder; name the folder of a run"),
    compare("run a_file", "a_file: is a file; name the folder of a run"),
    compare("run src", "src: not a run, it has no config.yaml; name a folder that sagan train made"),
    compare("run run", "run: is given twice"),
    compare("run ./run_bare/../run", "is given twice"),
    compare("run run_list_record", "run_list_record/run.json: not the record of a run; restore it, or remove it"),
    compare("run run_cut_record", "run_cut_record/run.json: not readable as JSON"),
    compare("run_cut_score", "metrics.jsonl: line 2 is damaged (it is not JSON, or cut short); repair or remove"),
    compare("run_list_score", "line 2 is damaged (input should be a valid dictionary"),
    compare("run_word_score", "line 2 is damaged (fid is 'low', expected a finite number)"),
    compare("run_nan_score", "line 2 is damaged (fid is nan, expected a finite number)"),
    compare("run_word_step", "line 2 is damaged (step: input should be a valid integer"),
    compare("run_word_protocol", "line 2 is damaged (protocol: input should be a valid dictionary"),
    compare("run_word_warnings", "line 2 is damaged (warnings: input should be a valid list"),
    compare("run_latin_score", "run_latin_score/metrics.jsonl: not readable ("),
    compare("run --metric fidd", "--metric fidd: unknown metric; did you mean fid?"),
    compare("run --metric speed", "--metric speed: unknown metric; known: fid, kid"),
    compare("run --metric fid", "--metric fid: none of these runs has it; they have no score yet"),
    compare("run_scored --metric kid", "--metric kid: none of these runs has it; they have fid"),
    compare("run --published cifar11", "cifar11: no published results on that data set; did you mean cifar10?"),
    compare("run --published faces", "no published results on that data set; known: cifar10, imagenet128"),
    compare("--published run run_scored", "run: is a folder, not a data set; put --published behind the runs"),
    compare("run --published", "--published: the data of these runs are none with published results; name one of"),
    compare("run --out out.pdf", "--out out.pdf: name a .png file"),
    compare("run --out images/folder.png", "--out images/folder.png: name a .png file; this is a folder"),
    compare("run --out a_file/out.png", "a_file: is a file, a folder was expected"),
    compare("run_bare --out out.png", "--out: nothing to draw, these runs have neither scores nor a log nor samples"),
    compare("run_cut_sheet --out out.png", "00000002.png: not readable as an image"),
]  # fmt: skip
