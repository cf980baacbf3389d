"""The report: the paper's numbers as printed, statistics against scipy, verdicts on constructed cases, whole files."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from report_fixture import write_made_up_results

from maskclip import Segmenter
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.pipeline import MaskCLIP
from miniature import render_scene
from study.report import build_report, schemes
from study.report.__main__ import main
from study.report.claims import CLAIMS, judge_claims, read_reasons, read_verdicts
from study.report.figures import training_curves
from study.report.page import embed_picture
from study.report.results import SCORE_COLUMNS, Results, interval, read_results
from study.report.tables import (
    DASH,
    PAPER_NUMBERS,
    TABLES,
    build_table,
    latex_escape,
    table_rows,
    to_csv,
    to_latex,
    to_markdown,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_up_results(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def reports(made_up: Path) -> Path:
    out = made_up.parent.parent / "reports"
    out.mkdir()
    (out / "reasons.yaml").write_text("C16: >\n  Looked for, and <found>.\n")
    figures = made_up / "0" / "figures"
    figures.mkdir()
    _picture(figures / "words.png")
    (figures / "captions.json").write_text(json.dumps({"words.png": "User-given words & more"}))
    build_report(made_up, out)
    return out


def _picture(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path


def results_of(*rows: tuple) -> Results:
    """Results from (method, dataset, metric, proposals, values by seed)."""
    table = [
        (method, proposals, dataset, metric, value, seed, "mini")
        for method, dataset, metric, proposals, values in rows
        for seed, value in enumerate(values)
    ]
    return Results(pd.DataFrame(table, columns=SCORE_COLUMNS))


def verdict_of(results: Results, claim: str):
    return next(j for j in judge_claims(results, {}) if j.claim.name == claim)


def test_paper_numbers_are_those_printed():
    paper = PAPER_NUMBERS
    assert len(paper) == 152  # 35 + 36 + 24 + 20 + 7 + 6 + 12 + 12 cells with a number in Tables 2 to 9
    assert paper[2, "SimSeg", "P-59"] == "47.7" and (2, "SimSeg", "P-459") not in paper
    assert paper[3, "MaskCLIP (Mask R-CNN)", "SQth"] == "64.183"
    assert paper[4, "MaskCLIP", "LVIS AP75"] == "8.810" and paper[4, "MaskCLIP", "ADE20K AP"] == "5.989"
    assert paper[9, "21, 22, 23, 24", "PQth"] == "14.048"
    for number, row, column in paper:
        assert row in table_rows(number) and column in TABLES[number].columns


def test_paper_numbers_hang_together():
    """A row printed in two tables has the same numbers; a quality over all classes is the mean over its classes."""
    paper = {key: float(value) for key, value in PAPER_NUMBERS.items()}
    for metric in ("PQ", "PQth", "PQst"):
        assert paper[3, "MaskCLIP", metric] == paper[8, "MaskCLIP", metric] == paper[9, "6, 12, 18, 24", metric]
    for (number, row, column), value in paper.items():
        if column in ("PQ", "SQ", "RQ") and number in (3, 8, 9) and (number, row, f"{column}th") in paper:
            things, stuff = paper[number, row, f"{column}th"], paper[number, row, f"{column}st"]
            assert value == pytest.approx((2 * things + stuff) / 3, abs=0.02)  # 100 things and 50 stuff classes


def test_interval_is_scipys():
    values = np.array([10.0, 12.5, 11.0, 13.0])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half = interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(interval(values[:1])[1]) and np.isnan(interval(values[:0])[0])


@pytest.mark.parametrize(("with_refinement", "without", "verdict"), [
    ([15.0, 15.2, 14.9], [13.0, 13.1, 13.0], "agrees"),
    ([13.0, 13.1, 13.0], [15.0, 15.2, 14.9], "does not agree"),
    ([15.0, 12.0, 14.0], [13.0, 13.1, 13.0], "undecided"),
    ([15.0], [14.9], "one seed: not judged"),
    ([14.9], [15.0], "one seed: not judged"),
    ([15.0], [15.0], "one seed: not judged"),
    ([15.0, 15.1], [], "undecided"),
])  # fmt: skip
def test_verdict(with_refinement, without, verdict):
    judged = verdict_of(
        results_of(
            ("maskclip", "a150", "PQ", "mask2former", with_refinement),
            ("wo_refinement", "a150", "PQ", "mask2former", without),
        ),
        "C14",
    )
    assert judged.verdict == verdict
    assert ("not measured" in judged.remark) == (not without)


def test_comparison_is_paired_by_seed():
    """Seeds differ by 20 points, the methods by 1 in each: unpaired intervals would reach far across 0."""
    judged = verdict_of(
        results_of(
            ("maskclip", "a150", "PQ", "mask2former", [11.0, 21.1, 30.9]),
            ("wo_refinement", "a150", "PQ", "mask2former", [10.0, 20.0, 30.0]),
        ),
        "C14",
    )
    outcome = judged.outcomes[0]
    test = stats.ttest_rel([11.0, 21.1, 30.9], [10.0, 20.0, 30.0])
    assert judged.verdict == "agrees" and test.pvalue < 0.05
    low, high = test.confidence_interval(0.95)
    assert (outcome.low, outcome.high) == pytest.approx((low, high))


def test_one_failing_set_is_enough_to_disagree():
    sets = ("a150", "a847", "p459", "p59")
    ours = [("wo_rma", s, "mIoU", "mask2former", [20.0, 20.1, 20.2] if s != "p59" else [5.0, 5.1, 5.2]) for s in sets]
    base = [("clip_baseline", s, "mIoU", "mask2former", [10.0, 10.1, 10.1]) for s in sets]
    judged = verdict_of(results_of(*ours, *base), "C1")
    assert judged.verdict == "does not agree" and "3 of 4 hold" in judged.remark
    assert [outcome.state for outcome in judged.outcomes] == ["holds", "holds", "holds", "fails"]


@pytest.mark.parametrize(("target", "verdict"), [(20.0, "agrees"), (30.0, "does not agree"), (5.0, "does not agree")])
def test_about_half_has_two_sides(target, verdict):
    judged = verdict_of(
        results_of(
            ("maskclip_split", "coco_split", "AP50_generalized_target", "mask2former_base", [target, target + 0.1]),
            ("maskclip_split", "coco_split", "AP50_generalized_base", "mask2former_base", [40.0, 40.1]),
        ),
        "C9",
    )
    assert judged.verdict == verdict


def test_ground_truth_masks_are_not_the_own_ones():
    results = results_of(
        ("maskclip", "a150", "PQ", "mask2former", [15.0, 15.1]),
        ("maskclip", "a150", "PQ", "ground_truth", [36.0, 36.4]),
    )
    assert results.score("maskclip", "a150", "PQ").tolist() == [15.0, 15.1]
    assert results.score("maskclip_gt", "a150", "PQ").tolist() == [36.0, 36.4]
    assert verdict_of(results, "C12").verdict == "agrees"


def test_a_reason_stands_beside_claims_that_do_not_agree_alone(made_up: Path):
    judged = judge_claims(read_results(made_up), {f"C{number}": "why not" for number in range(1, 19)})
    assert {j.verdict == "agrees" for j in judged} == {True, False}
    assert all(bool(j.reason) == (j.verdict != "agrees") for j in judged)


def test_refinement_is_shown_where_it_is_with_its_overlap():
    picture, truth = np.full((40, 60, 3), 200, np.uint8), np.zeros((40, 60), bool)
    truth[10:20, 20:30] = True
    wider, shifted = truth.copy(), np.roll(truth, 5, 1)
    wider[20:22, 20:30] = True
    figure = schemes.refinement_scheme([(picture, truth, [shifted, wider, truth])] * 2, [2, 5])
    titles = [axes.get_title() for axes in figure.axes[:6]]
    assert titles[1:4] == ["proposal\nIoU 33.3 %", "after layer 2\nIoU 83.3 %", "after layer 5\nIoU 100.0 %"]
    change = figure.axes[5].images[0].get_array()
    assert (change == (0, 158, 115)).all(-1).sum() == (change == (230, 159, 0)).all(-1).sum() == 50
    assert change.shape[0] < 40 and len(figure.axes) == 12
    figure.draw_without_rendering()


def test_training_curves_compare_quarters_not_single_steps():
    curves = pd.DataFrame({"method": "maskclip", "seed": 0, "step": range(8), "loss": [5.0, 3, 9, 9, 9, 9, 1, 2]})
    detail = training_curves(Results(pd.DataFrame(columns=SCORE_COLUMNS), curves=curves)).texts[1].get_text()
    assert detail.startswith("MaskCLIP: mean loss 4.0 in the first quarter, 1.5 in the last;")


def test_distinctions_are_judged_against_chance():
    """Always saying the same word gives 100 % and 0 %: chance, not a distinction."""
    results = results_of(("maskclip", "a150", "PQ", "mask2former", [15.0, 15.1]))
    rows = [("hearts", word, 100.0 * (word == "filled"), seed) for seed in (0, 1) for word in ("filled", "empty")]
    table = pd.DataFrame(rows, columns=["pair", "word", "accuracy", "seed"]).assign(chance=50.0, trained=False)
    results.attributes = table
    judged = verdict_of(results, "C18")
    assert judged.verdict == "undecided" and "not above chance by itself: empty" in judged.remark
    results.attributes.accuracy = [90.0, 60.0, 91.0, 60.0]
    judged = verdict_of(results, "C18")
    assert judged.verdict == "agrees" and "by itself" not in judged.remark
    trained = table.assign(pair="cow or horse", accuracy=0.0, trained=True)  # counts for nothing
    results.attributes = pd.concat([table, trained])
    assert verdict_of(results, "C18").verdict == "agrees" and len(verdict_of(results, "C18").outcomes) == 1
    results.attributes = table
    results.attributes = results.attributes[results.attributes.seed == 0]
    assert verdict_of(results, "C18").verdict == "one seed: not judged"


def test_a_paper_run_that_is_none_says_so_first(tmp_path: Path):
    made_up = write_made_up_results(tmp_path, seeds=(0,)).rename(tmp_path / "results" / "paper")
    scores = pd.read_csv(made_up / "0" / "scores.csv").assign(profile="paper")
    scores.to_csv(made_up / "0" / "scores.csv", index=False)
    build_report(made_up, tmp_path / "out", departures=["maskclip.steps is 4, the paper's 10000"])
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert text.index("Not the paper's run") < text.index("maskclip.steps is 4") < text.index('id="results"')


def test_four_steps_are_told_though_the_profile_says_otherwise_by_now(tmp_path: Path):
    made_up = write_made_up_results(tmp_path, seeds=(0,)).rename(tmp_path / "results" / "paper")
    scores = pd.read_csv(made_up / "0" / "scores.csv").assign(profile="paper")
    scores.to_csv(made_up / "0" / "scores.csv", index=False)
    for steps, network in ((4, 4), (10_000, 368_750)):
        for path in made_up.glob("0/curves_*.csv"):
            path.unlink()
        for name, last in (("maskclip", steps), ("mask2former", network), ("class_aware", 92_188)):
            curve = pd.DataFrame({"step": [0, last - 1], "loss": [2.0, 1.0]})
            curve.to_csv(made_up / "0" / f"curves_{name}.csv", index=False)
        build_report(made_up, tmp_path / "out")
        text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        first_screen = text[: text.index('id="results"')]
        assert ("maskclip was trained for 4 steps" in first_screen) == (steps == 4)
        assert ("mask2former was trained for 4 steps" in first_screen) == (network == 4)
        assert ("Not the paper's run" in first_screen) == (4 in (steps, network))


def test_the_verdict_of_many_seeds_stands_beside_one_seeds(reports: Path, tmp_path: Path):
    made_up = write_made_up_results(tmp_path, seeds=(0,))
    build_report(made_up, tmp_path / "reports", published=reports / "claims.csv")
    one = pd.read_csv(tmp_path / "reports" / "claims.csv").set_index("claim")
    many = pd.read_csv(reports / "claims.csv").set_index("claim")
    assert one.verdict["C1"] == "one seed: not judged" and f"with 3 seeds: {many.verdict['C1']}" in one.remark["C1"]
    assert "with 3 seeds: " not in str(one.remark["C11"]), "costs are measured once, and judged"
    assert f"with 3 seeds: {many.verdict['C1']}" in (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert read_verdicts(tmp_path / "reports" / "claims.csv") == {} == read_verdicts(None), "one seed's is none"


def test_costs_prefer_the_papers_model():
    results = results_of(("maskclip", "a150", "PQ", "mask2former", [15.0]))
    rows = [
        ("clip_baseline", "tflops", "mini", 1.0),
        ("maskclip", "tflops", "mini", 0.5),
        ("clip_baseline", "tflops", "ViT-L-14-336", 40.0),
        ("maskclip", "tflops", "ViT-L-14-336", 0.5),
        ("clip_baseline", "time_s", "mini", 1.0),
        ("wo_rma", "time_s", "mini", 0.1),
    ]
    results.efficiency = pd.DataFrame(
        [(*r[:2], 100, r[2], 336, r[3]) for r in rows],
        columns=["method", "metric", "masks", "model", "resolution", "value"],
    )
    flops, seconds = verdict_of(results, "C10"), verdict_of(results, "C11")
    assert flops.outcomes[0].value == 80 and "ViT-L-14-336" in flops.remark
    assert seconds.outcomes[0].value == pytest.approx(10) and "mini" in seconds.remark


def test_tables_show_dashes_for_what_is_missing():
    table = build_table(results_of(("maskclip", "a150", "mIoU", "mask2former", [20.0, 21.0])), 2)
    study = table.frame[table.frame.Numbers == "study"].set_index("Method")
    assert study["A-150"]["CLIP Baseline"].text == DASH and study["A-847"]["MaskCLIP"].text == DASH
    mean, half = interval(np.array([20.0, 21.0]))
    assert study["A-150"]["MaskCLIP"].text == f"{mean:.1f} ± {half:.1f}" and study["A-150"]["MaskCLIP"].seeds == 2
    assert list(table.frame[table.frame.Method == "OpenSeg"].Numbers) == ["paper (cited)"]
    assert pd.read_csv(pd.io.common.StringIO(to_csv(table))).query("method == 'SimSeg'")["P-459"].isna().all()


@pytest.mark.parametrize("number", TABLES)
def test_markdown_and_latex_are_well_formed(made_up: Path, number: int):
    table = build_table(read_results(made_up), number)
    rows = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1 and len(rows) == len(table.frame) + 2
    latex = to_latex(table)
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {table.frame.shape[1] - 1}
    for special in "%&_#$":
        plain = latex.replace("&", "") if special == "&" else latex.replace(r"$\pm$", "")
        assert not re.search(rf"(?<!\\)[{special}]", plain.replace("{%\n", "{\n")), special
    assert latex.count("{") == latex.count("}") and latex.count(r"\begin") == latex.count(r"\end")


def test_latex_escape_covers_what_tex_minds():
    assert latex_escape("50% of A_B & {c} ± 1 ~") == r"50\% of A\_B \& \{c\} $\pm$ 1 \textasciitilde{}"


class _Page(HTMLParser):
    """Open tags, ids, links and sources of a page."""

    void = frozenset(("meta", "img", "br", "link"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        self.alts += [found["alt"]] if tag == "img" else []
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)


def test_page_is_whole_and_needs_nothing_else(reports: Path):
    text = (reports / "index.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    inside = [link for link in page.links if link.startswith("#")]
    assert len(inside) > 15 and all(link[1:] in page.ids for link in inside)
    files = [link for link in page.links if not link.startswith(("#", "https://"))]
    assert len(files) > 9 and all((reports / file).is_file() for file in files)
    assert {"https://proceedings.mlr.press/v202/ding23a.html", "https://github.com/mlpc-ucsd/MaskCLIP"} < set(
        page.links
    )
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"@import|url\(|<script|<link|<iframe", text)
    assert len(page.alts) == len(page.sources) and all(len(alt) > 20 for alt in page.alts), "what one would see"
    assert len(set(page.alts)) == len(page.alts)
    assert all(f'id="{claim.name}"' in text for claim in CLAIMS) and all(f'id="table{n}"' in text for n in TABLES)
    assert "Looked for, and &lt;found&gt;." in text and "User-given words &amp; more" in text
    assert len(text) < 5_000_000


def test_the_twin_has_all_that_the_page_has(reports: Path):
    """README.md, as a repository's web view renders it: every claim, verdict, table and picture, by relative paths."""
    text = (reports / "README.md").read_text(encoding="utf-8")
    claims = pd.read_csv(reports / "claims.csv")
    for claim in claims.itertuples():
        assert re.search(rf"<b[^>]*>{claim.verdict}</b> \*\*{claim.claim}\.\*\*", text), claim
    for number in TABLES:
        table = (reports / "tables" / f"table{number}.md").read_text(encoding="utf-8")
        assert table.split("\n\n")[1] in text, f"table {number}"
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert len(pictures) == 14 and all((reports / path).is_file() and len(alt) > 20 for alt, path in pictures)
    assert "<figure" not in text and "data:" not in text
    page = _Page()
    page.feed(MarkdownIt("commonmark").enable("table").render(text))
    assert page.open == []
    assert all(f'id="{claim}"' in text for claim in claims.claim) and "XPM" in text and "GoldG" in text


def test_the_report_opens_with_one_scene_and_the_methods_answers(tmp_path: Path):
    made_up = write_made_up_results(tmp_path)
    figures = made_up / "0" / "figures"
    figures.mkdir()
    captions = {
        f"scene_{name}.png": [name, f"A scene, as {name} sees it."] for name in ("picture", "wo_rma", "maskclip")
    }
    captions["fig2_rma.png"] = ["Fig. 2", "Maps of attention, side by side."]
    for name in captions:
        _picture(figures / name)
    (figures / "captions.json").write_text(json.dumps(captions))
    build_report(made_up, tmp_path / "reports", also=["svg"])
    for name in ("index.html", "README.md"):
        text = (tmp_path / "reports" / name).read_text(encoding="utf-8")
        assert ("](#pictures)" in text) == (name == "README.md")  # the page has made a link of it
        scene, finding = text.index("A scene, as maskclip sees it."), text.index("claims agree here")
        assert scene < finding < text.index("The paper's claims" if name == "README.md" else "<h2>The paper's claims")
        assert text.index("How it works") < text.index("Maps of attention, side by side.")
    charts = sorted(path.stem for path in (tmp_path / "reports" / "figures").glob("*.svg"))
    assert charts == sorted(path.stem for path in (tmp_path / "reports" / "figures").glob("*.png"))


def test_costs_say_which_machine_they_were_measured_on(made_up: Path):
    results = read_results(made_up)
    assert "a machine that was not noted" in build_table(results, 6).footnote
    results.efficiency = results.efficiency.assign(machine="a laptop")
    footnote = build_table(results, 6).footnote
    assert "TFLOPs with ViT-L-14-336, on a laptop" in footnote and "two per multiply-add" in footnote


def test_schemes_show_the_models_own_tensors():
    """Figs. 1, 2 and 6 from the committed models: the refined mask is the encoder's last one."""
    segmenter, words = Segmenter.load(encoder="models/mini_maskclip"), ["cat", "grass", "sky"]
    model = segmenter.model
    picture, _ = render_scene(words, "max", "print", seed=1)
    shown = schemes.example(model, picture, words, model.proposals([picture])[0])
    figures = [
        schemes.pipeline_scheme(shown, [True, False, False]),
        schemes.rma_scheme(shown),
        schemes.baseline_scheme(shown, MaskCLIP(model.clip, MaskedImages(model.clip))),
    ]
    for figure in figures:
        (axes,) = figure.axes
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes), "labels inside the frame"
        overlaps = [one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i]]
        assert not any(overlaps), "labels on each other"
    (axes,) = figures[1].axes
    refined = model.embed(picture, shown.masks).mask_logits[0].numpy()
    assert np.allclose(axes.images[-1].get_array(), refined, atol=1e-4)
    (axes,) = figures[0].axes
    probs = model(picture, words, shown.masks).class_probs.numpy()
    assert any(np.allclose(image.get_array(), probs) for image in axes.images if image.get_array().shape == probs.shape)
    with pytest.raises(ValueError, match=r"Fig\. 2 needs an encoder with RMA"):
        schemes.rma_scheme(schemes.Example(picture, words, Segmenter.load().model, shown.masks, shown.proposals))


def test_report_files(reports: Path):
    for number in TABLES:
        for suffix in ("csv", "md", "tex"):
            assert (reports / "tables" / f"table{number}.{suffix}").stat().st_size > 100
    claims = pd.read_csv(reports / "claims.csv")
    assert list(claims.claim) == [f"C{i}" for i in range(1, 19)] and set(claims.verdict) <= {
        "agrees",
        "does not agree",
        "undecided",
        "one seed: not judged",
    }
    assert claims.set_index("claim").loc["C16", "reason"] == "Looked for, and <found>."
    metrics = json.loads((reports / "metrics.json").read_text())
    table3 = pd.read_csv(reports / "tables" / "table3.csv").set_index(["method", "numbers"])
    mean = float(table3.loc[("MaskCLIP", "study"), "PQ"])
    plotted = pd.read_csv(reports / "plots" / "table3.csv").set_index("method")
    assert plotted.loc["MaskCLIP", "PQ"] == pytest.approx(mean, abs=1e-3)
    assert metrics["claims"]["agrees"] == (claims.verdict == "agrees").sum() and sum(metrics["claims"].values()) == 18
    assert len(list((reports / "figures").glob("*.png"))) == 13
    assert not list(reports.rglob(".*"))  # no temporary file stays


def test_first_results_alone_make_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One method, one seed: everything else is a dash; charts of former results do not linger. The command, without
    arguments, reports the profile of params.yaml."""
    root = Path(__file__).parent.parent
    shutil.copy(root / "params.yaml", tmp_path)
    shutil.copytree(root / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "mini" / "4"
    folder.mkdir(parents=True)
    pd.DataFrame([("wo_rma", "mask2former", "a150_semantic", "mIoU", 12.34, 4, "mini")], columns=SCORE_COLUMNS).to_csv(
        folder / "baselines.csv", index=False
    )
    stale = tmp_path / "reports" / "figures" / "table3_panoptic.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of former results")
    main([])
    text = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert "12.3" in text and not stale.exists()
    assert set(pd.read_csv(tmp_path / "reports" / "claims.csv").verdict) == {"undecided"}


def test_other_seeds_are_left_out(made_up: Path):
    assert read_results(made_up).seeds == [0, 1, 2]
    two = read_results(made_up, seeds=[0, 2])
    assert two.seeds == [0, 2] and set(two.curves.seed) == {0, 2} and set(two.times.stage) >= {"03_baselines"}


def test_a_stages_time_is_the_median_of_seeds(tmp_path: Path):
    """One that was run again had nothing left to do; another shared the machine."""
    results = write_made_up_results(tmp_path)
    for seed, seconds in enumerate((24, 210, 944)):
        path = tmp_path / f"runs/mini/times/{seed}-02_proposals.csv"
        path.write_text(f"stage,seconds,peak_gb\n{seed}-02_proposals,{seconds},{1 + seed / 10}\n")
    times = read_results(results).times.set_index("stage")
    assert times.seconds["02_proposals"] == 210 and times.peak_gb["02_proposals"] == 1.2


def test_what_a_killed_process_began_to_write_is_not_read(made_up: Path, tmp_path: Path):
    copy = shutil.copytree(made_up, tmp_path / "mini")
    (copy / "0" / ".baselines.csv.x1.csv").write_text("cut")
    assert read_results(copy).seeds == [0, 1, 2]


def _scores(path: Path, text: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "scores.csv").write_text(text)


HEAD = ",".join(SCORE_COLUMNS) + "\n"


@pytest.mark.parametrize(("text", "sentence"), [
    ("", "empty or cut off"),
    ("method,dataset\na,b\n", "lacks the column 'proposals'"),
    (HEAD + "maskclip,mask2former,a150,PQ,high,0,mini\n", "no number"),
    (HEAD + "maskclip,mask2former,a150,PQ,1,0,mini\nmaskclip,mask2former,a1", "scores.csv is cut off"),
    (HEAD + "maskclip,mask2former,a150,PQ,1,0,mini\nmaskclip,mask2former,a150,PQ,2,0,mini\n", "two different values"),
    (HEAD + "maskclip,mask2former,a150,PQ,1,0,mini\nmaskclip,mask2former,p59,PQ,2,0,paper\n", "mix the profiles"),
    (HEAD + "maskclp,mask2former,a150,PQ,1,0,mini\n", "study/methods.py has no 'maskclp'"),
    (HEAD, "scores.csv has a header alone"),
    *(
        (f"{HEAD}maskclip,mask2former,a150,PQ,1,{seed},mini\n", f"0/scores.csv {why}: line 2 has {cell} as its seed")
        for seed, cell, why in (
            ("7", "'7'", "lies in the folder of seed 0 and is of another"),
            ("x", "'x'", "has a seed that is no whole number from 0 on"),
            ("0.5", "'0.5'", "has a seed that is no whole number from 0 on"),
            ("-1", "'-1'", "has a seed that is no whole number from 0 on"),
            ("", "an empty cell", "is cut off"),
        )
    ),
    *(
        (f"{HEAD}maskclip,mask2former,a150,PQ,{score},0,mini\n", "scores.csv has a number outside 0 to 100: line 2")
        for score in ("-5", "1e9")
    ),
])  # fmt: skip
def test_bad_results_are_named_in_one_sentence(tmp_path: Path, text: str, sentence: str):
    _scores(tmp_path / "results" / "mini" / "0", text)
    with pytest.raises(SystemExit, match=f"error: .*{re.escape(sentence)}") as stopped:
        main([str(tmp_path / "results" / "mini"), str(tmp_path / "reports")])
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "reports").exists()


TEXT, ABOVE, BELOW = "has no number where one must be", "has a number outside 0 to 1", "has a number below 0"


@pytest.mark.parametrize(("file", "column", "cell", "why"), [
    ("efficiency.csv", "value", "abc", TEXT),
    ("efficiency.csv", "masks", "abc", TEXT),
    ("efficiency.csv", "value", "-1", BELOW),
    ("0/curves_maskclip.csv", "loss", "abc", TEXT),
    ("0/curves_maskclip.csv", "step", "abc", TEXT),
    ("0/curves_maskclip.csv", "step", "", "is cut off"),
    ("0/proposal_quality.csv", "value", "abc", TEXT),
    ("0/proposal_quality.csv", "value", "1.5", ABOVE + ":"),
    ("0/proposal_quality.csv", "group", "huge", "knows no groups but all, things"),
    ("0/attributes.csv", "accuracy", "abc", TEXT),
    ("0/attributes.csv", "accuracy", "500", ABOVE + "00:"),
    ("../../runs/mini/times/0-04_maskclip.csv", "seconds", "abc", TEXT),
    ("../../runs/mini/times/0-04_maskclip.csv", "peak_gb", "inf", TEXT),
])  # fmt: skip
def test_a_wrong_number_is_named_with_its_file_and_line(tmp_path: Path, file: str, column: str, cell: str, why: str):
    results = write_made_up_results(tmp_path, seeds=(0,))
    table = pd.read_csv(results / file, dtype=str)
    table.loc[0, column] = cell
    table.to_csv(results / file, index=False)
    said = repr(cell) if cell else "an empty cell"
    with pytest.raises(ValueError, match=rf"{Path(file).name} {why}.* line 2 has {said} as its {column}; delete it"):
        read_results(results)


@pytest.mark.parametrize(("file", "sentence"), [
    ("efficiency.csv", "values for method clip_baseline, metric tflops, masks 100, model ViT-L-14-336, in .*line 5 "),
    ("0/attributes.csv", "values for pair filled / empty, word filled heart, seed 0, in .*line 2 and in .*line 8;"),
    ("0/proposal_quality.csv", "values for source mask2former, dataset a150, group all, metric AR100, seed 0"),
])  # fmt: skip
def test_what_has_one_value_is_not_averaged(tmp_path: Path, file: str, sentence: str):
    results = write_made_up_results(tmp_path, seeds=(0,))
    table = pd.read_csv(results / file)
    row = table[table.iloc[:, 0] == "clip_baseline"].iloc[:1] if file == "efficiency.csv" else table.iloc[:1]
    pd.concat([table, row]).to_csv(results / file, index=False)
    assert len(read_results(results).efficiency) == len(pd.read_csv(results / "efficiency.csv").drop_duplicates())
    row = row.assign(**{table.columns[-1]: 0.5})
    pd.concat([table, row]).to_csv(results / file, index=False)
    with pytest.raises(ValueError, match=f"two different {sentence}"):
        read_results(results)


def test_a_folder_holds_its_own_seed(tmp_path: Path):
    results = write_made_up_results(tmp_path, seeds=(0,))
    (results / "0" / "attributes.csv").rename(results / "attributes.csv")
    with pytest.raises(ValueError, match=r"attributes\.csv is of no seed; move it"):
        read_results(results)
    (results / "attributes.csv").rename(results / "0" / "attributes.csv")
    shutil.copytree(results / "0", results / "1")
    with pytest.raises(ValueError, match=r"1.scores\.csv lies in the folder of seed 1 and is of another"):
        read_results(results)
    for name in ("01", "²"):
        (results / "1").rename(results / name)
        with pytest.raises(ValueError, match=f"{name} is no seed's folder"):
            read_results(results)
        (results / name).rename(results / "1")


@pytest.mark.parametrize("content", [b"{", b'"x"', b"\xff\xfe", b'[["a.png", "x"]]'])
@pytest.mark.parametrize("file", ["weights.json", "figures/captions.json"])
def test_damaged_json_is_named(tmp_path: Path, file: str, content: bytes):
    path = write_made_up_results(tmp_path, seeds=(0,)) / "0" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is not a JSON object; delete it"):
        read_results(tmp_path / "results" / "mini")


@pytest.mark.parametrize(("captions", "sentence"), [
    ({"a.png": ["x"]}, r"captions\.json has neither a caption nor \[caption, alt\] for 'a\.png'"),
    ({"a.png": 5}, r"captions\.json has neither a caption"),
    ({"b.png": "x"}, r"captions\.json names 'b\.png', which is not beside it"),
    ({"../../efficiency.csv": "x"}, r"captions\.json names '\.\./\.\./efficiency\.csv', which is not beside it"),
    ({"": "x"}, r"captions\.json names '', which"),
    ({"cut.png": "x"}, r"figures.cut\.png cannot be read as a picture"),
    ({}, r"figures.cut\.png cannot be read as a picture"),
])  # fmt: skip
def test_pictures_are_whole_and_beside_their_captions(tmp_path: Path, captions: dict, sentence: str):
    results = write_made_up_results(tmp_path, seeds=(0,))
    figures = results / "0" / "figures"
    figures.mkdir()
    _picture(figures / "a.png")
    (figures / "cut.png").write_bytes(_picture(tmp_path / "whole.png", (300, 300)).read_bytes()[:-1000])
    (figures / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
        main([str(results), str(tmp_path / "reports")])
    assert not (tmp_path / "reports").exists()


def test_a_setting_of_released_weights_names_a_file(tmp_path: Path):
    results = write_made_up_results(tmp_path, seeds=(0,))
    (results / "0" / "weights.json").write_text('{"maskclip.start": 1}')
    with pytest.raises(ValueError, match=r"weights\.json names no file for 'maskclip\.start'"):
        read_results(results)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_report_needs_a_folder(tmp_path: Path, inside: str):
    (tmp_path / "reports").write_text("mine")
    with pytest.raises(SystemExit, match=r"error: .*reports is a file; name a folder"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "reports" / inside)])
    assert (tmp_path / "reports").read_text() == "mine"


def test_reasons_asked_for_must_be_there(made_up: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match=r"error: .*no file of reasons nowhere\.yaml"):
        main([str(made_up), str(tmp_path / "reports"), "--reasons", "nowhere.yaml"])
    assert not (tmp_path / "reports").exists()


def test_missing_results_and_bad_reasons(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="run the study first"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no scores"):
        read_results(tmp_path)
    reasons = tmp_path / "reasons.yaml"
    assert read_reasons(reasons, "mini") == {}
    for text, sentence in (("C99: x", "'C99'"), ("- C1", "a list"), ("C1: [", "not valid YAML")):
        reasons.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_reasons(reasons, "mini")
    reasons.write_text("profile: mini\nC1: found")
    assert read_reasons(reasons, "mini") == {"C1": "found"} and read_reasons(reasons, "paper") == {}
    reasons.write_text("seeds: 7\nTable 5: found")
    assert read_reasons(reasons, "mini", 7) == {"Table 5": "found"}
    assert read_reasons(reasons, "mini", 1) == {"Table 5": "Found with 7 seeds: found"}


def test_large_pictures_shrink(tmp_path: Path):
    embedded = embed_picture(_picture(tmp_path / "large.png", (700, 2400)))
    assert embedded.startswith("data:image/webp;base64,")
    assert len(embedded) < (tmp_path / "large.png").stat().st_size


def test_the_readme_has_the_committed_reports_numbers():
    """A later report changes both, or this fails."""
    readme, tables = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "reports" / "tables"
    said = pd.read_csv(ROOT / "reports" / "claims.csv").verdict.value_counts()
    said = said.reindex(["agrees", "does not agree", "undecided"], fill_value=0)
    told = "18 claims: {} agree, {} do not, {} are undecided".format(*said)
    assert said.sum() == 18 and told in " ".join(readme.split())
    own = ["CLIP Baseline", "MaskCLIP w/o RMA", "MaskCLIP"]
    rows = {"PQ": [(3, "PQ", one) for one in own], "mIoU": [(2, "A-150", one) for one in own]}
    for metric, cells in rows.items():
        line = f"| {metric}, A-150 mirror (paper) |"
        for number, column, method in [*cells, (7, metric, "MaskCLIP + GT masks")]:
            table = pd.read_csv(tables / f"table{number}.csv", index_col="method").loc[method].set_index("numbers")
            mean, half = table.loc["study", [column, f"{column} ±"]].astype(float)
            line += f" {mean:.1f} ± {half:.1f} ({float(table[column]['paper']):.1f}) |"
        assert line in readme
