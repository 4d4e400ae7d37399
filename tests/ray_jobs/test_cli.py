"""The `clipautt` command over small jobs of our own: help, errors and exit codes; and what it says of the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ray_jobs
from ray_jobs import cli
from ray_jobs.platform import configuration, jobs

WALK = '''"""Walks through a list of clips.

Longer words about it.

Example:
    clipautt walk clip.mp4 speed=3
"""
import numpy_is_not_imported_for_help
POSITIONAL = "video"
def main(cfg): ...
'''
MEET = '''"""Meets people."""
POSITIONAL = "who clips…"
def main(cfg): ...
'''
RUN = '''"""Runs."""
from pathlib import Path
class Remote(ValueError):
    cause = ValueError("steps=-1: expected at least 0")
def main(cfg):
    if cfg.fail == "value": raise ValueError("steps=-1: expected at least 0")
    if cfg.fail == "remote": raise Remote("a traceback of the worker")
    if cfg.fail == "file": Path("/no/such/file").read_text()
    if cfg.fail == "stop": raise KeyboardInterrupt
    if cfg.fail == "bug": raise KeyError("x")
    print(repr(cfg.video))
    return cfg.code
'''
WORDS = '''"""Takes words."""
READS_WORDS = True
def main(words):
    print(words)
    return 0
'''
SETTINGS = """# What walking needs.
defaults:
  - pace: slow
  - _self_

video: ??? # the clip to walk through
# How fast it goes,
# in clips per second.
speed: 2
nested: # held together
  depth: [1, 2] # how deep
  silent: null
fail: ""
code: 0
"""


@pytest.fixture
def small_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of jobs and a conf folder of their own."""
    packages, conf = tmp_path / "jobs", tmp_path / "conf"
    (conf / "pace").mkdir(parents=True)
    for name, text in {"walk": WALK, "meet": MEET, "run": RUN, "words": WORDS, "helper": '"""No job."""\n'}.items():
        (packages / name).mkdir(parents=True)
        (packages / name / "job.py").write_text(text)
        for module in (f"ray_jobs.{name}", f"ray_jobs.{name}.job"):
            monkeypatch.delitem(sys.modules, module, raising=False)
    for name in ("walk", "run"):
        (conf / f"{name}.yaml").write_text(SETTINGS)
    (conf / "pace" / "slow.yaml").write_text("# Calm.\n\n# steps in a minute\nsteps: 60\n")
    target = "ray_jobs.platform.cluster.ClusterConfig"
    (conf / "pace" / "fast.yaml").write_text(f"# Hurried.\n_target_: {target}\nnum_cpus: 3\n")
    monkeypatch.setattr(ray_jobs, "__path__", [str(packages)])
    monkeypatch.setattr(configuration, "folder", lambda: conf)
    monkeypatch.delenv("CLIPAUTT_DEBUG", raising=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_overview_lists_every_job_without_importing_it(small_jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "  walk   Walks through a list of clips\n" in out
    assert "  words  Takes words\n" in out
    assert "helper" not in out


def test_help_of_a_job(small_jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "walk", "--help")
    assert code == 0
    for line in [
        "Example:\n    clipautt walk clip.mp4 speed=3",
        "Usage: clipautt walk VIDEO key=value …",
        "  pace=fast                                 Hurried.",
        "  pace=slow                                 (chosen) Calm.",
        "  pace.steps=60                             steps in a minute",
        "  video=(required)                          the clip to walk through",
        "  speed=2                                   How fast it goes, in clips per second.",
        "  nested.depth=[1,2]                        how deep",
        "  nested.silent=null                        held together\n",
    ]:
        assert line in out, line
    assert "_target_" not in out


def test_help_shows_what_the_words_chose_and_falls_back_on_field_docs(
    small_jobs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "run", "pace=fast", "speed=9", "--help")
    assert "  pace.num_cpus=3                           Cores for a Ray started on this machine" in out
    assert "  speed=9  " in out


def test_a_job_gets_its_settings_and_gives_its_exit_code(small_jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "run", "video=a", "code=3") == (3, "'a'\n", "")
    assert run(capsys, "words", "a", "--b") == (0, "['a', '--b']\n", "")


@pytest.mark.parametrize("path", ["clip.mp4", "/a b/x=1, (2).mp4", "it's [a].mp4", "speed=3.mp4"])
def test_a_first_word_may_be_a_path(small_jobs: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(small_jobs)
    if "/" not in path:
        Path(path).touch()
    words = jobs.overrides(jobs.find_job("walk"), [path, "speed=3"])
    cfg = configuration.compose("walk", words)
    assert (cfg.video, cfg.speed) == (path, 3)


def test_a_first_word_that_is_a_setting_is_one(small_jobs: Path) -> None:
    assert jobs.overrides(jobs.find_job("walk"), ["video=x.mp4"]) == ["video=x.mp4"]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["007", "a b.mp4", "speed=2", "it's.mp4"], ["who='007'", "speed=2", r"clips=['a b.mp4','it\'s.mp4']"]),
        (["who=x", "clips=[a]"], ["who=x", "clips=[a]"]),
        (["who=x", "a.mp4"], ["who=x", "clips=['a.mp4']"]),
        (["speed=2", "anna"], ["speed=2", "who='anna'"]),
    ],
)
def test_further_words_make_a_list(small_jobs: Path, words: list[str], settings: list[str]) -> None:
    assert jobs.overrides(jobs.find_job("meet"), words) == settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wlak"], "clipautt wlak: unknown job 'wlak'; did you mean 'walk'? `clipautt --help` lists the jobs\n"),
        (["run", "sped=1"], "clipautt run: unknown key 'sped'; did you mean 'speed'?\n"),
        (["run", "--num-steps", "3"], "clipautt run: unknown option '--num-steps': settings are written key=value, as"),
        (
            ["run", "clip.mp4"],
            "clipautt run: cannot read 'clip.mp4': settings are written key=value; see `clipautt run",
        ),
        (["run", "video=x", "fail=value"], "clipautt run: steps=-1: expected at least 0\n"),
        (["run", "video=x", "fail=remote"], "clipautt run: steps=-1: expected at least 0\n"),
        (["run", "video=x", "fail=file"], "clipautt run: No such file or directory: /no/such/file\n"),
        (["run"], "clipautt run: video has no value; set it with video=…\n"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    small_jobs: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert "Traceback" not in err


def test_debug_shows_where_it_came_from(small_jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPAUTT_DEBUG", "1")
    with pytest.raises(ValueError, match="expected at least 0"):
        cli.main(["run", "video=x", "fail=value"])


def test_bugs_are_not_hidden(small_jobs: Path) -> None:
    with pytest.raises(KeyError):
        cli.main(["run", "video=x", "fail=bug"])


def test_an_interrupted_job_exits_130(small_jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "run", "video=x", "fail=stop") == (130, "", "\nclipautt run: interrupted\n")


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ray_jobs.cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("clipautt ")


@pytest.mark.parametrize("name", jobs.jobs())
def test_every_real_job_has_a_purpose_and_an_example(name: str) -> None:
    job = jobs.jobs()[name]
    assert job.purpose, f"ray_jobs/{name}/job.py has no docstring"
    assert len(job.purpose) <= 110, f"ray_jobs/{name}/job.py: the docstring's first line is too long"
    assert "Example:" in job.doc, f"ray_jobs/{name}/job.py: the docstring has no `Example:`"
    assert f"clipautt {name}" in job.doc


@pytest.mark.parametrize("name", jobs.jobs())
def test_help_of_every_real_job_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert jobs.jobs()[name].purpose in out


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys; from ray_jobs import cli; cli.main(['--help'])"
    code += (
        "; print([name for name in ('torch', 'ray', 'pandas', 'numpy', 'hydra', 'omegaconf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def called(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `clipautt` is this one."""
    command = f'clipautt() {{ "{sys.executable}" -m ray_jobs.cli "$@"; }}; {line}'
    root = str(Path(cli.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def test_output_that_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    done = called(tmp_path, "clipautt adapt --help | head -1; echo ${PIPESTATUS[0]}")
    assert done.stderr == "" and done.stdout.splitlines()[1] in ("0", "141")
    write_people(tmp_path, 4000)
    done = called(tmp_path, "clipautt manifest dataset=manifest manifest=m.csv | head -1; echo ${PIPESTATUS[0]}")
    assert done.stderr == "" and done.stdout.splitlines()[1] == "141"


def write_people(folder: Path, count: int) -> None:
    rows = [f"c{n},s{n},c{n}.mp4,target" for n in range(count)]
    (folder / "m.csv").write_text("\n".join(["clip_id,subject_id,source,split", *rows]))


def test_names_that_no_table_can_hold_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "x" * 300
    for words in (["predict", name], ["manifest", "dataset=manifest", f"manifest={name}.csv"]):
        code, _, err = run(capsys, *words)
        length = len(words[-1].rpartition("=")[2])
        told = f"clipautt {words[0]}: File name too long: {'x' * 80}… ({length} letters)"
        assert (code, err) == (2, f"{told}\n")
    (tmp_path / "caf\udce9.mp4").touch()
    code, _, err = run(capsys, "predict", f"{tmp_path}/caf\udce9.mp4")
    assert code == 2 and "this name is not UTF-8" in err
    done = called(tmp_path, err.rpartition("with ")[2])
    assert done.returncode == 0 and (tmp_path / "caf_.mp4").exists()


def test_manifest_says_which_videos_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_people(tmp_path, 3)
    (tmp_path / "c1.mp4").write_text("x")
    code, out, err = run(capsys, "manifest", f"manifest={tmp_path}/m.csv")
    assert (code, err) == (0, "") and f"c2    {tmp_path}/c2.mp4: no such file or folder" in out
    assert out.endswith("2 of 3 clips have no video or folder of frames\n")


def test_a_person_without_labels_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "people" / "anna").mkdir(parents=True)
    (tmp_path / "people" / "anna" / "7.mp4").write_text("x")
    words = ["manifest", "dataset=folder", f"root={tmp_path}/people", f"manifest={tmp_path}/m.parquet"]
    assert [run(capsys, *words)[::2] for _ in range(2)] == [(0, "")] * 2


def test_classes_in_a_message_can_be_copied_into_a_shell(tmp_path: Path) -> None:
    rows = ["a,s,FALSE,source_train", "b,s,it's,source_train", "c,t,0,target"]
    rows = [f"{row},x.mp4" for row in rows]
    (tmp_path / "m.csv").write_text("\n".join(["clip_id,subject_id,label,split,source", *rows]))
    told = called(tmp_path, "clipautt manifest dataset=manifest manifest=m.csv").stderr
    done = called(tmp_path, f"clipautt manifest dataset=manifest manifest=m.csv {told.rpartition('as in ')[2]}")
    assert done.returncode == 0 and "FALSE" in done.stdout.splitlines()[0]


def test_a_root_without_its_reader_names_the_readers(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "adapt", "root=people")
    readers = ", ".join(f"dataset={name}" for name in ("bah", "biovid", "folder", "stressid"))
    assert (code, err) == (2, f"clipautt adapt: unknown key 'root'; it belongs to {readers}\n")


def test_training_asks_for_source_subjects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_people(tmp_path, 1)
    code, _, err = run(capsys, "train", f"manifest={tmp_path}/m.csv", f"runs={tmp_path}/runs")
    assert code == 2 and "the manifest has no source_train clips to train on; data of target subjects alone is" in err
    assert not (tmp_path / "runs").exists()
