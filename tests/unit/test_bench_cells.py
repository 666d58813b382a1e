"""Tracks, cells, selection, costs: what the benchmark would run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import synthetic_ledger as synthetic
from itrd.bench.cells import Cell, Selection, cells_of, check_cells, config_of
from itrd.bench.costs import Costs, multiply_adds
from itrd.bench.ledger import Ledger
from itrd.bench.tracks import TEACHER, Track, list_tracks, load_track
from itrd.cli import main
from itrd.engine.config import DistillConfig, TrainConfig
from itrd.engine.provenance import hardware
from itrd.errors import UserError
from itrd.methods import list_methods
from itrd.recipes import PAIRS


@pytest.mark.parametrize(("name", "label"), [("protocol", "protocol"), ("protocol-bf16", "protocol, bf16")])
def test_protocol_has_both_tables(name: str, label: str) -> None:
    track = load_track(name)
    assert track.published
    cells = list(cells_of(track))
    assert len(cells) == len(set(cells))
    assert [c.student for c in cells[:6]] == [
        "wrn_40_2",
        "resnet56",
        "resnet110",
        "resnet32x4",
        "vgg13",
        "ResNet50",
    ]
    per_method = Counter(c.method for c in cells if c.seed == 0)
    assert per_method["itrd"] == per_method["kd"] == per_method["crd"] == len(PAIRS)
    assert per_method["none"] == 9  # students, which pairs share
    assert per_method["fsp"] == 6  # maps of equal width only
    assert len(track.methods()) == 18  # 16 methods, students alone, and ITRD's other published settings
    for cell in cells:
        if cell.seed == 0:
            config = config_of(track, cell)
            assert config.protocol() == label
            assert isinstance(config, DistillConfig) == (cell.teacher is not None)


def test_protocol_priorities() -> None:
    cells = list(cells_of(load_track("protocol")))
    waves = list(dict.fromkeys((c.method, c.seed) for c in cells))
    assert waves[:11] == [
        (TEACHER, 0),
        *(("itrd", 0), ("none", 0), ("itrd", 1), ("none", 1), ("itrd", 2), ("none", 2)),
        *(("itrd", 3), ("none", 3), ("itrd", 4), ("none", 4)),
    ]
    assert waves[11:13] == [("kd", 0), ("crd", 0)]


def test_smoke_has_every_method() -> None:
    track = load_track("smoke")
    cells = list(cells_of(track))
    assert {c.method for c in cells} == {TEACHER, *list_methods()}
    assert len(cells) == 1 + 2 * len(list_methods())
    config = config_of(track, next(c for c in cells if c.method == "abound"))
    assert isinstance(config, DistillConfig)
    assert (config.epochs, config.precision, config.teacher) == (12, "bf16", "smoke/resnet20")
    assert config.method == "abound(init_epochs=2)"
    assert config_of(track, cells[0]).epochs == 15
    assert not track.published


def test_selection() -> None:
    track = load_track("protocol")
    cells = list(cells_of(track))

    def chosen(*words: str | None) -> list[str]:
        return [cell.name for cell in Selection.parse(*words).filter(cells, track)]

    assert chosen("resnet56:resnet20", "kd", "0-1,4") == [f"resnet56-resnet20-kd-seed{s}" for s in (0, 1, 4)]
    assert chosen("resnet56:resnet20", "none,teacher", "0") == ["teacher-resnet56", "resnet20-none-seed0"]
    assert len(chosen("resnet20", "itrd", "0")) == 2
    assert chosen(None, None, None) == [cell.name for cell in cells]
    with pytest.raises(UserError, match="no pair 'resnet56:vgg8'"):
        chosen("resnet56:vgg8", None, None)
    with pytest.raises(UserError, match="no method 'magic'"):
        chosen(None, "magic", None)
    for wrong in ("one", "4-2", ",", "0,4-2", ""):
        with pytest.raises(UserError, match="seeds are numbers"):
            chosen(None, None, wrong)
    for empty in ((",", None), (None, ""), ("", None)):
        with pytest.raises(UserError, match="leave --"):
            chosen(*empty, None)


def test_every_cell_is_reproduced_by_its_command() -> None:
    for name in list_tracks():
        track = load_track(name)
        cells = list(cells_of(track))
        for cell in cells:
            words = dict(zip(cell.command().split()[3::2], cell.command().split()[4::2], strict=True))
            selection = Selection.parse(words["--pairs"], words["--methods"], words["--seeds"])
            assert selection.filter(cells, track) == [cell]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("name: x", "is not a track"),
        ("[", "is not a track"),
        ("name: ../x\ntitle: x\ndata: digits\npairs: []\nwaves: []", "letters, digits"),
        (
            "name: x\ntitle: x\ndata: digits\npairs: [[a, b]]\nwaves: [{methods: [magic], seeds: [0]}]",
            "magic",
        ),
        ("name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\nsettings: {speed: 3}", "speed"),
        ("name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\ncolour: red", "colour"),
        (
            "name: smoke\ntitle: x\ndata: digits\npairs: []\nwaves: []",
            "the package's track smoke; give it another",
        ),
        (
            "name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\nzoo: ../../zz",
            "zoo is a folder inside the zoo",
        ),
        ("name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\nzoo: /zz", "zoo is a folder inside the zoo"),
        ("name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\nzoo: 3", "zoo is a folder inside the zoo"),
        (
            "name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\nstudent: {seed: 3}",
            "seed is no setting of a track",
        ),
        (
            "name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\nsettings: {out: x}",
            "out is no setting of a track",
        ),
        (
            "name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\nteacher: {data: x}",
            "data is no setting of a track",
        ),
        (
            "name: x\ntitle: x\ndata: digits\npairs: []\nwaves: []\nteacher: {track: clean}",
            "belongs into student",
        ),
    ],
)
def test_files_that_are_no_tracks(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=complaint):
        load_track(str(path))


MINE = "name: mine\ntitle: x\ndata: digits\npairs: [[resnet20, resnet8]]\nwaves: [{methods: [none, kd], seeds: [0]}]\n"


def test_settings_of_distillation_are_those_of_distilled_cells(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        MINE + "settings: {track: clean}\nstudent: {ce_weight: 0.5}\nteacher: {seed: 3}"
    )
    track = load_track(str(tmp_path / "mine.yaml"))
    check_cells(track)
    teacher, alone, kd = (config_of(track, cell) for cell in cells_of(track))
    assert isinstance(kd, DistillConfig)
    assert (kd.track, kd.ce_weight) == ("clean", 0.5)
    assert (type(teacher), teacher.seed, type(alone), alone.seed) == (TrainConfig, 3, TrainConfig, 0)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("resnet8", "resnet9", "unknown model 'resnet9'"),
        ("resnet20", "resnet21", "unknown model 'resnet21'"),
        ("data: digits", "data: digit", "unknown dataset 'digit'"),
        ("title: x", "title: x\nstudent: {epochs: 0}", "epochs must be at least 1"),
        ("title: x", "title: x\nloss_of: {kd: kd(colour=3)}", "colour"),
        ("title: x", "title: x\nloss_of: {kd: attention + 0.5*itrd}", "give it another name in loss_of"),
        ("title: x", "title: x\nloss_of: {kd: 1*ce + kd}\nstudent: {ce_weight: 2.0}", "two weights"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_tracks_that_cannot_be_run_are_refused_at_once(
    verb: str,
    before: str,
    after: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE.replace(before, after))
    assert main(["bench", verb, "--track", "mine.yaml"]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_the_command_of_a_track_of_ones_own_names_a_file() -> None:
    words = Cell("mine", None, "resnet8", "none", 0).command()
    assert words == "itrd bench run --track mine.yaml --methods none --pairs resnet8 --seeds 0"


def test_unknown_track() -> None:
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        load_track("smok")
    with pytest.raises(UserError, match="cannot read"):
        load_track("nothing.yaml")


def costs_after(root: Path, track: Track, *known: tuple[Cell, str]) -> Costs:
    """Costs on this machine, whose ledger has records of these cells in these precisions."""
    for cell, precision in known:
        record = synthetic.record(cell, 12, hardware=hardware("cpu"), protocol="custom")
        record["settings"]["precision"] = precision
        synthetic.write(root, cell, record)
    ledger = Ledger(root)
    return Costs(track, [run for name in ledger.tracks() for run in ledger.runs(name)], "cpu")


def test_costs_are_measured_where_the_ledger_knows_this_hardware(tmp_path: Path) -> None:
    assert multiply_adds("resnet20") == 40_818_944
    track = load_track("smoke")
    cells = {cell.name: cell for cell in cells_of(track)}
    known = cells["resnet20-resnet8-kd-seed0"]
    costs = costs_after(tmp_path, track, (known, "bf16"))
    other_seed, other = costs.of(cells["resnet20-resnet8-kd-seed1"]), costs.of(cells["resnet8-none-seed0"])
    (run,) = Ledger(tmp_path).runs("smoke")
    assert other_seed.basis == "measured"
    assert other_seed.seconds == pytest.approx(12 * 50000 / run.images_per_second)
    assert other.basis == "estimate"
    # The estimate scales with operations: three times the student's, and the teacher's where there is one.
    ratio = (3 * multiply_adds("resnet8") + multiply_adds("resnet20")) / (3 * multiply_adds("resnet8"))
    assert other_seed.seconds / other.seconds == pytest.approx(ratio)
    assert Costs(track, [], "cpu").of(known).basis == "estimate"
    assert Cell("smoke", None, "resnet8", "none", 0) == cells["resnet8-none-seed0"]


def test_costs_of_images_that_were_not_read_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "photos.yaml").write_text(
        "name: photos\ntitle: x\ndata: ./photos\npairs: [[resnet20, resnet8]]\nwaves: [{methods: [kd], seeds: [0]}]"
    )
    track = load_track(str(tmp_path / "photos.yaml"))
    assert {Costs(track, [], "cpu").of(cell).basis for cell in cells_of(track)} == {"unknown"}


def test_costs_are_those_of_the_precision(tmp_path: Path) -> None:
    """Records of another precision give a rate where there is no better one, and never a measurement."""
    protocol = load_track("protocol")
    wanted = Cell("protocol", "resnet56", "resnet20", "kd", 0)
    other = Cell("protocol", "vgg13", "vgg8", "kd", 0)
    thumb = Costs(protocol, [], "cpu").of(wanted)
    only_bf16 = costs_after(tmp_path, protocol, (replace(wanted, seed=1), "bf16")).of(wanted)
    both = costs_after(tmp_path, protocol, (other, "fp32")).of(wanted)
    alone = costs_after(tmp_path / "fp32", protocol, (other, "fp32")).of(wanted)
    assert {cost.basis for cost in (thumb, only_bf16, both, alone)} == {"estimate"}
    assert len({thumb.seconds, only_bf16.seconds, both.seconds}) == 3
    assert both == alone
    measured = costs_after(tmp_path, protocol, (replace(wanted, seed=2), "fp32")).of(wanted)
    assert measured.basis == "measured"


def test_an_estimate_follows_the_record_of_nearest_size(tmp_path: Path) -> None:
    """resnet8's records, of which there are more, say little of what resnet56 gets out of the machine."""
    track = load_track("protocol-bf16")
    for name, seed, rate in (("resnet8", 0, 2000.0), ("resnet8", 1, 2200.0), ("resnet56", 0, 900.0)):
        cell = Cell("smoke", None, name, "none", seed)
        record = synthetic.record(cell, 3, hardware=hardware("cpu"), protocol="custom")
        record["settings"]["precision"] = "bf16"
        record["images_per_second"] = rate
        synthetic.write(tmp_path, cell, record)
    costs = Costs(track, Ledger(tmp_path).runs("smoke"), "cpu")
    large = costs.of(Cell("protocol-bf16", None, "resnet110", "teacher", 0))
    expected = 240 * 50000 / 900 * multiply_adds("resnet110") / multiply_adds("resnet56")
    assert (large.basis, large.seconds) == ("estimate", pytest.approx(expected))
    small = costs.of(Cell("protocol-bf16", None, "MobileNetV2", "none", 0))
    assert small.seconds == pytest.approx(
        240 * 50000 / 2100 * multiply_adds("MobileNetV2") / multiply_adds("resnet8")
    )


@pytest.mark.parametrize("method", ["abound", "factor", "fsp"])
def test_costs_count_first_stages(method: str) -> None:
    track = load_track("smoke")
    costs = Costs(track, [], "cpu")
    with_stage, without = (costs.of(Cell("smoke", "resnet20", "resnet8", m, 0)) for m in (method, "kd"))
    assert with_stage.seconds / without.seconds == pytest.approx((12 + 2) / 12)


def test_records_from_before_a_track_was_changed_are_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = Cell("mine", None, "resnet8", "none", 0)
    text = (
        "name: mine\ntitle: x\ndata: cifar100\npairs: [[resnet20, resnet8]]\nwaves: [{methods: [none], seeds: [0]}]\n"
        "student: {epochs: 3, milestones: [150, 180, 210]}\n"
    )
    synthetic.write(Path("results"), cell, synthetic.record(cell, 3))
    Path("mine.yaml").write_text(text)
    assert main(["bench", "plan", "--track", "mine.yaml"]) == 0
    assert capsys.readouterr().err == ""
    Path("mine.yaml").write_text(text.replace("epochs: 3", "epochs: 4"))
    assert main(["bench", "plan", "--track", "mine.yaml"]) == 0
    error = capsys.readouterr().err
    assert "1 record not of the settings that track mine has now" in error
    assert "(epochs 3, not 4)" in error


def test_records_of_unknown_networks_tell_no_rate(tmp_path: Path) -> None:
    track = load_track("smoke")
    cell = Cell("smoke", None, "resnet8", "none", 0)
    strangers = [(Cell("other", None, f"net{number}", "none", 0), "bf16") for number in range(3)]
    assert costs_after(tmp_path, track, *strangers).of(cell) == Costs(track, [], "cpu").of(cell)
    known = (Cell("smoke", None, "resnet20", "none", 0), "bf16")
    alone = costs_after(tmp_path / "known", track, known)
    assert costs_after(tmp_path, track, known).of(cell) == alone.of(cell)


def test_the_protocol_in_bf16_has_the_same_cells() -> None:
    tracks = [load_track(name) for name in ("protocol", "protocol-bf16")]
    first, second = ([replace(c, track="") for c in cells_of(track)] for track in tracks)
    assert first == second
    assert tracks[0].network_name("vgg13") != tracks[1].network_name("vgg13")
