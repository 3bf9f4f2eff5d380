"""Intervals, tests and ranks: against enumeration, closed forms and other code, and in the tables of the reports."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, kendalltau, wilcoxon

from pansharp_study.core import root
from pansharp_study.scoring.stats import (
    against_all,
    attainable_level,
    best_classical,
    compare,
    concordance,
    difference,
    gain,
    holm,
    interval,
    mean_table,
    picture_scores,
    pictures,
    rank_table,
    rank_tau,
    sign_flip_p,
    smallest_p,
    too_few,
)
from pansharp_study.scoring.tables import load_table
from pansharp_study.study.report import answer_table, best_table
from pansharp_study.study.report_tables import (
    agreement_words,
    comparison_table,
    ranks_table,
    score_table,
    scored_indices,
)

TARGETS = ("WV2", "WV3", "WV4", "IKONOS", "QB", "GF2", "WV2-real")
SEVEN = ["sam_deg", "ergas", "q2n", "psnr_db", "hqnr", "d_lambda_k", "d_s"]
METHODS = (  # method, paradigm, error
    ("EXP", "classical", 5.0),
    ("GSA", "classical", 3.0),
    ("BT-H", "classical", 2.0),
    ("net zero-shot", "zero-shot", 3.0),
    ("net one-shot full", "one-shot full", 2.8),
    ("net one-shot freeze", "one-shot freeze", 2.9),
    ("net one-shot from scratch", "one-shot from scratch", 3.5),
)
COMMITTED = [p for t in TARGETS if (p := root() / "metrics" / "adapt" / f"{t}.csv").is_file()]


def scores(pictures: int, sensors=("QB",), tiles: int = 1, seed: int = 0) -> pd.DataFrame:
    """Tidy scores of four methods with all indices; `net` is better than EXP, equal to GSA and worse than BT-H."""
    rng, rows = np.random.default_rng(seed), []
    for picture, sensor, tile in itertools.product(range(pictures), sensors, range(tiles)):
        hard = 1 + picture / 5
        for method, paradigm, error in METHODS:
            e = error * hard + rng.normal(0, 0.1)
            label = {
                "sensor": sensor,
                "scene": f"p{picture}, tile {tile}",
                "simulated": True,
                "method": method,
                "network": "net" if "net" in method else "",
                "paradigm": paradigm,
            }
            reduced = {"sam_deg": 2 * e, "ergas": e, "q2n": 1 - e / 20, "psnr_db": 40 - e}
            rows.append({**label, "resolution": "reduced", **reduced})
            d, d_s = 0.01 * (6 - error) + rng.uniform(0, 0.01), 0.02 * hard
            rows.append({**label, "resolution": "full", "d_lambda_k": d, "d_s": d_s, "hqnr": (1 - d) * (1 - d_s)})
    labels = ["sensor", "scene", "simulated", "method", "network", "paradigm", "resolution"]
    return pd.DataFrame(rows).reindex(columns=[*labels, *SEVEN])


# ---------------------------------------------------------------- intervals

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@settings(max_examples=25, deadline=None)
@given(VALUES, st.floats(0.1, 10), st.floats(-50, 50))
def test_interval_moves_with_its_data(values, factor, shift):
    """Another unit or zero point moves the interval and nothing else; it never leaves the range of the data."""
    x = np.array(values)
    mean, low, high = interval(x, resamples=299)
    assert x.min() - 1e-9 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= x.max() + 1e-9
    moved = interval(factor * x + shift, resamples=299)
    np.testing.assert_allclose(moved, factor * np.array([mean, low, high]) + shift, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_interval_of_few_is_their_range(n):
    """With up to four pictures the widened interval is worst to best."""
    x = np.arange(n) ** 2.0
    assert interval(x)[1:] == (0.0, (n - 1) ** 2.0)


def test_interval_of_many_is_the_t_interval():
    """For many even values the bootstrap and the t interval agree within 3 %."""
    from scipy.stats import t

    x = np.random.default_rng(0).normal(size=60)
    mean, low, high = interval(x, resamples=20000)
    half = t.ppf(0.975, 59) * x.std(ddof=1) / np.sqrt(60)
    assert abs((high - low) / (2 * half) - 1) < 0.03 and abs((high + low) / 2 - mean) < 0.03 * half


def test_interval_is_repeatable_and_batched():
    x = np.random.default_rng(0).normal(size=(5, 9))
    together = np.array(interval(x))
    np.testing.assert_array_equal(together, np.array(interval(x)))
    np.testing.assert_allclose(together, np.array([interval(row) for row in x]).T, rtol=1e-12)


def test_single_picture_has_no_interval():
    mean, low, high = interval([4.0])
    assert mean == 4 and np.isnan(low) and np.isnan(high)


def test_tiles_are_drawn_with_their_picture():
    """Cutting pictures into equal tiles changes no interval and no p: tiles are no evidence of their own."""
    rows = scores(7)
    many = pd.concat(
        [rows.assign(scene=rows["scene"].str.replace("tile 0", f"tile {i}")) for i in range(6)], ignore_index=True
    )
    for table in (lambda r: mean_table(r, ["ergas", "hqnr"]), lambda r: compare(r, [("EXP", "BT-H")])):
        pd.testing.assert_frame_equal(table(rows), table(many))


# ---------------------------------------------------------------- tests


def enumerate_p(d: np.ndarray) -> float:
    means = np.array([(d * s).mean() for s in itertools.product((-1, 1), repeat=len(d))])
    return float((np.abs(means) >= abs(d.mean()) - 1e-12).mean())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-10, 10).map(lambda v: round(v, 3)), min_size=2, max_size=8))
def test_permutation_test_is_exact(values):
    d = np.array(values)
    assert np.isclose(sign_flip_p(d), enumerate_p(d))
    assert np.isclose(sign_flip_p(-d), sign_flip_p(d)) and np.isclose(sign_flip_p(1000 * d), sign_flip_p(d))


@pytest.mark.parametrize("n", [2, 3, 5, 6, 8])
def test_smallest_p(n):
    """All differences agree: the floor of both tests."""
    d = np.linspace(1, 2, n)
    assert np.isclose(sign_flip_p(d), smallest_p(n)) and np.isclose(wilcoxon(d).pvalue, smallest_p(n))
    assert too_few(n) == (smallest_p(n) > 0.05)
    assert np.isclose(attainable_level(n), min(0.95, 1 - smallest_p(n)))


def test_one_picture_tests_nothing():
    assert sign_flip_p([3.0]) == 1 and too_few(1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_by_its_definition(p):
    """A hypothesis is rejected at a level exactly if the step-down procedure rejects it; order does not matter."""
    p, corrected = np.array(p), holm(p)
    assert (corrected >= p - 1e-15).all() and (corrected <= 1).all()
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for step, i in enumerate(np.argsort(p, kind="stable")):
            if p[i] * (len(p) - step) > level:
                break
            rejected.add(int(i))
        assert rejected == set(np.flatnonzero(corrected <= level).tolist())
    np.testing.assert_allclose(holm(p[::-1]), corrected[::-1])


def test_comparison_finds_what_was_put_in():
    """On twelve pictures: better, worse and equal methods are told apart, with the sign of each index."""
    rows = scores(12)
    pairs = against_all(rows, "GSA")
    table = compare(rows, pairs, effect=difference).set_index("method")
    gains = compare(rows, pairs).set_index("method")
    better, worse, equal = (table.loc[m] for m in ("BT-H", "EXP", "net zero-shot"))
    assert better["p"] < 0.05 and better["won"] == 12 and better["high"] < 0 < gains.loc["BT-H", "low"]
    assert worse["p"] < 0.05 and worse["won"] == 0 and worse["low"] > 0 > gains.loc["EXP", "high"]
    assert equal["p"] > 0.05 and equal["low"] < 0 < equal["high"]
    for effect in (difference, gain):
        higher = compare(rows, pairs, "q2n", effect=effect).set_index("method").loc["BT-H"]
        assert higher["mean"] > 0 and higher["won"] == 12
    assert (gains["won"] == table["won"]).all() and (gains["n"] == 12).all()


def test_gain_is_relative():
    rows = scores(4)
    reduced = rows[rows["resolution"] == "reduced"]
    a, b = (reduced.loc[reduced["method"] == m, "ergas"].to_numpy() for m in ("BT-H", "EXP"))
    np.testing.assert_allclose(gain(rows, "BT-H", "EXP"), 1 - a / b)
    np.testing.assert_allclose(difference(rows, "BT-H", "EXP"), a - b)


def test_best_classical_weighs_sam_and_ergas_alike():
    """SAM/SAM_EXP + ERGAS/ERGAS_EXP decides, over pictures and by group; EXP and networks are no candidates."""
    errors = {"EXP": (2.0, 2.0), "low ERGAS": (3.0, 1.0), "low SAM": (1.0, 1.4), "net zero-shot": (0.1, 0.1)}
    rows = pd.DataFrame(
        [
            ("QB", f"{scene}, {tile}", method, "reduced", factor * sam, factor * ergas)
            for scene, factor, tiles in (("a", 1, 2), ("b", 5, 1))
            for tile in range(tiles)
            for method, (sam, ergas) in errors.items()
        ],
        columns=["sensor", "scene", "method", "resolution", "sam_deg", "ergas"],
    )
    rows["paradigm"] = rows["method"].map(lambda m: "zero-shot" if "net" in m else "classical")
    assert best_classical(rows) == "low SAM"
    other = rows.assign(sensor="WV2", sam_deg=1.0)
    assert best_classical(pd.concat([rows, other]), by="sensor") == {"QB": "low SAM", "WV2": "low ERGAS"}
    with pytest.raises(ValueError, match="scored are: EXP"):
        best_classical(rows[rows["method"].isin(["EXP", "net zero-shot"])])


def test_an_acquisition_is_one_picture():
    """Where a table names acquisitions, these are the pictures, whatever the scenes are called."""
    rows = scores(4).assign(acquisition=["east", "", "east", ""] * 14)
    assert set(pictures(rows)) == {"east", "p0", "p1", "p2", "p3"}
    assert list(picture_scores(rows.assign(acquisition="one"), "ergas").index) == ["one"]


def test_satellites_and_seeds_are_no_pictures():
    """A picture on six satellites, scored with two seeds, is one picture."""
    rows = scores(3, sensors=("QB", "WV2", "GF2"))
    assert len(difference(rows, "EXP", "GSA")) == 3 and len(picture_scores(pd.concat([rows, rows]), "hqnr")) == 3


def test_missing_scores_are_left_out_by_pair():
    rows = scores(4)
    rows.loc[(rows["method"] == "GSA") & rows["scene"].str.startswith("p0"), "ergas"] = np.nan
    table = compare(rows, against_all(rows, "BT-H")).set_index("method")
    assert table.loc["GSA", "n"] == 3 and table.loc["EXP", "n"] == 4


# ---------------------------------------------------------------- ranks


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 8), st.integers(2, 6), st.integers(0, 999))
def test_concordance_is_friedmans(k, m, seed):
    """W = chi2 / (m (k - 1)), with ties; and for untied pairs of rankings W = (1 + Spearman's rho) / 2."""
    ranks = pd.DataFrame(np.random.default_rng(seed).integers(1, 4, (k, m)))
    if (ranks.nunique() > 1).all():
        assert np.isclose(concordance(ranks), friedmanchisquare(*ranks.to_numpy()).statistic / (m * (k - 1)))
    a, b = (np.random.default_rng(seed + i).permutation(k) for i in (1, 2))
    assert np.isclose(concordance(pd.DataFrame({"a": a, "b": b})), (1 + np.corrcoef(a, b)[0, 1]) / 2)


def test_ranks_follow_the_direction_of_each_index():
    ranks = rank_table(scores(5), SEVEN)
    assert ranks.loc["BT-H", ["ergas", "q2n", "psnr_db", "sam_deg"]].tolist() == [1] * 4
    assert ranks.loc["EXP", ["ergas", "q2n"]].tolist() == [7, 7]
    assert ranks.loc["EXP", "hqnr"] < ranks.loc["BT-H", "hqnr"], "made so: the indices disagree"
    tau = rank_tau(ranks)
    assert np.isclose(tau.loc["ergas", "hqnr"], kendalltau(ranks["ergas"], ranks["hqnr"]).statistic)
    assert (np.diag(tau) == 1).all()
    assert (ranks["d_s"] == ranks["d_s"].iloc[0]).all(), "ties share the mean rank"


def test_order_of_rows_does_not_matter():
    rows = scores(5)
    other = rows.sample(frac=1, random_state=0)
    a, b = (mean_table(r, ["ergas"]).set_index("method").sort_index() for r in (rows, other))
    pd.testing.assert_frame_equal(a[["mean", "n"]], b[["mean", "n"]])
    a, b = (rank_table(r, ["ergas", "hqnr"]).sort_index() for r in (rows, other))
    pd.testing.assert_frame_equal(a, b)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: interval([]), "shape (0,)"),
        (lambda: interval([1.0, np.inf]), "1 finite"),
        (lambda: picture_scores(scores(2), "ssim"), "there are: sam_deg, ergas"),
        (lambda: gain(scores(2), "PCA", "EXP"), "'PCA'"),
        (lambda: gain(scores(2), "GSA", "EXP", "psnr_db"), "dB"),
        (lambda: rank_table(scores(2).query("method == 'EXP'"), ["ergas"]), "got 1"),
    ],
)
def test_wrong_input_is_explained(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


# ---------------------------------------------------------------- in the reports


def text(style) -> str:
    return re.sub(r"<[^>]+>", " ", style.to_html().split("</style>")[1])


@pytest.mark.parametrize("pictures", [1, 3, 12])
def test_report_tables(pictures):
    """Every mean has its interval, every method its comparison, and p only where it can mean something."""
    rows = scores(pictures, sensors=("QB", "WV2"))
    few, worth = pictures < 12, {1: "n = 1: no interval", 3: "75 % (n = 3)", 12: "95 % intervals"}[pictures]
    for resolution, columns in (("reduced", 4), ("full", 3)):
        means, differences = score_table(rows, resolution), comparison_table(rows, resolution)
        assert len(re.findall(r"\[-?\d+\.\d+, ", text(means))) == (0 if pictures == 1 else 7 * columns)
        assert "from BT-H, the best classical method" in differences.caption
        assert f"{pictures} picture" in differences.caption
        assert worth in means.caption and worth in differences.caption
        assert ("too small" in differences.caption or "no test" in differences.caption) == few
        assert ("p = " in text(differences)) <= (not few)
        assert ("over 6 comparisons" in differences.caption) == (not few)
    assert "1 is best" in text(ranks_table(rows)) and "Kendall's W" in agreement_words(rows)
    answers = answer_table(rows, ["net"], resamples=99)
    assert "2 of 2 satellites" in text(answers) and ("p &lt; 0.001" in text(answers) or few)
    assert f"0 of {pictures}" in text(best_table(rows))


@pytest.mark.skipif(not COMMITTED, reason="no results yet")
@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_means_equal_the_committed_ones(path):
    """The tables show the means that the stage adapt wrote."""
    rows, wanted = load_table(path), json.loads(path.with_suffix(".json").read_text())
    for resolution, methods in wanted.items():
        table = mean_table(rows, scored_indices(rows, resolution)).set_index(["method", "index"])
        for (method, index), row in table.iterrows():
            assert np.isclose(row["mean"], methods[method][index], rtol=1e-5)


@pytest.mark.skipif(not COMMITTED, reason="no results yet")
def test_committed_results_have_too_few_pictures_for_a_p():
    """Eighteen scenes of six satellites are three pictures."""
    paths = [p for p in COMMITTED if not p.stem.endswith("-real")]
    rows = pd.concat([load_table(p) for p in paths])
    table = compare(rows, against_all(rows, "MTF-GLP-FS"))
    assert (table["p"].isna() == [too_few(n, len(table)) for n in table["n"]]).all()
