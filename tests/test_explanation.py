"""Explaining: contributions against leaving words out by hand, and the pictures of it."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from coalign.model.nli import LABELS, Predictor, explain_pair, load_checkpoint, save_checkpoint
from test_prediction import SMALL, TEXTS, made
from typer.testing import CliRunner

from coalign.cli import app
from coalign.draw import plot_alignment, print_alignment
from coalign.draw_explanation import plot_explanation, print_explanation
from coalign.draw_html import _STYLE
from coalign.lexical import align_words

HOSTILE = "<script>alert('x')</script> \"onload=x $x^{$ [red] dogs & \x00 \ud800 </table>"


@pytest.fixture
def run(tmp_path):
    save_checkpoint(made(), tmp_path / "best.json")
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["explain", str(tmp_path), *map(str, words)])


def sums_of(model, batch):
    """What Aggregate is given for a batch."""
    seen = []
    hook = model.aggregate.register_forward_pre_hook(lambda layer, given: seen.append(given))
    model(batch)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    "changes", [{}, {"null_token": True, "projection_size": 6}, {"max_tokens": 3}, {"intra_attention": True}], ids=str
)
@pytest.mark.parametrize("labels", [LABELS, ("no", "yes")], ids=len)
def test_contributions_are_what_leaving_a_word_out_does(changes, labels):
    saved = made(replace(SMALL, **changes), labels)
    found = explain_pair(saved, *TEXTS[4])
    predictor, model = Predictor(saved), saved.build()
    answer = predictor([TEXTS[4][0]], [TEXTS[4][1]])
    assert found.label == answer.labels[0]
    assert [*found.probabilities.values()] == pytest.approx(answer.probabilities[0].tolist(), abs=1e-5)
    assert found.premise == predictor.reader.words(TEXTS[4][0])
    assert found.unknown == [w for w in dict.fromkeys(found.premise + found.hypothesis) if w not in saved.vocabulary]

    batch = predictor.reader.batch([TEXTS[4][0]], [TEXTS[4][1]])
    sums = sums_of(model, batch)
    ids = batch.ids_a[None], batch.ids_b[None]
    place = labels.index(found.label)

    def log_odds(sum_a, sum_b):
        scores = model.aggregate(sum_a, sum_b).detach().double()[0].tolist()
        return -math.log(sum(math.exp(s - scores[place]) for i, s in enumerate(scores) if i != place))

    whole = log_odds(*sums)
    with torch.no_grad():
        A, B = model._embed(*ids, {"mask_a": None, "mask_b": None, "lengths_a": None, "lengths_b": None})
        for i, value in enumerate(found.contributions_a.tolist()):
            v = model.compare.g(A[0, i], found.p[i] @ B[0])
            assert value == pytest.approx(whole - log_odds(sums[0] - v, sums[1]), rel=1e-4, abs=1e-4)
        for j, value in enumerate(found.contributions_b.tolist()):
            v = model.compare.g(B[0, j], found.q[:, j] @ A[0])
            assert value == pytest.approx(whole - log_odds(sums[0], sums[1] - v), rel=1e-4, abs=1e-4)
    assert float(found.contributions_a.abs().max()) > 1e-3
    torch.testing.assert_close(found.p.sum(1), torch.ones(len(found.premise)))
    torch.testing.assert_close(found.q.sum(0), torch.ones(len(found.hypothesis)))


def test_compared_sums_to_what_aggregate_is_given():
    """Padded and masked, and padding's rows are 0."""
    saved = made()
    model = saved.build()
    batch = Predictor(saved).reader.batch(*zip(*TEXTS[:7], strict=True))
    v_a, v_b = model.compared(batch.padded(1))
    for v, sums in zip((v_a, v_b), sums_of(model, batch), strict=True):
        torch.testing.assert_close(v.sum(1), sums)
    padding = torch.arange(v_a.shape[1]) >= batch.lengths_a[:, None]
    assert padding.any()
    assert (v_a[padding] == 0).all()


def test_what_can_not_be_looked_at():
    saved = made()
    for texts, message in (
        (("", "b"), "the premise must have 1 to 100 words to be looked at, not 0"),
        (("a", " "), "the hypothesis must have 1 to 100 words"),
    ):
        with pytest.raises(ValueError, match=message):
            explain_pair(saved, *texts)
    with pytest.raises(TypeError, match=r"^the hypothesis must be a text, not list$"):  # as predict_snli takes it
        explain_pair(saved, "a", ["b"])
    with pytest.raises(ValueError, match="not 10000"):
        explain_pair(made(replace(SMALL, max_tokens=0)), "a " * 10_000, "b")
    with pytest.raises(ValueError, match="one class only"):
        explain_pair(made(labels=("yes",)), "a", "b")


def test_the_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = run(*TEXTS[0])
    assert shown.exit_code == 0, shown.output
    found = explain_pair(made(), *TEXTS[0])
    assert shown.stdout.startswith(found.label)
    for word, value in zip(found.hypothesis, found.contributions_b.tolist(), strict=True):
        assert re.search(rf"{word} +{re.escape(f'{value:+.3f}')}", shown.stdout)
    assert "rows sum to 100" in shown.stdout
    assert "not in the vocabulary: " in shown.stdout


@pytest.mark.parametrize("null_token", [False, True])
def test_a_sentence_that_is_cut_is_said_to_be(tmp_path, null_token):
    """In the terminal, on the page, and beside a picture; where nothing is cut, nothing is said."""
    save_checkpoint(made(replace(SMALL, max_tokens=3, null_token=null_token)), tmp_path / "best.json")

    def said(*words):
        shown = CliRunner().invoke(app, ["explain", str(tmp_path), *words]).stdout
        return re.findall(r"words cut from the (\w+)'s end, .*: (\d+)", shown)

    assert said("a dog sleeps", "a dog") == []
    assert said("a dog sleeps in a house", "a dog") == [("premise", "3")]
    for name in ("x.html", "x.png"):
        found = said("a dog sleeps", "a dog sleeps here", "--out", str(tmp_path / name))
        assert found == [("hypothesis", "1")]
    assert "words cut from the hypothesis&#x27;s end" in (tmp_path / "x.html").read_text()


def test_a_picture_says_what_is_not_read(tmp_path):
    """As the terminal and the page do."""
    from matplotlib.figure import Figure

    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "supxlabel", lambda figure, text, **options: written.append(text))
        plot_explanation(explain_pair(made(), *TEXTS[0]), tmp_path / "x.png")
        cut = explain_pair(made(replace(SMALL, max_tokens=3)), "a dog sleeps", "a dog sleeps here")
        plot_explanation(cut, tmp_path / "x.svg")
        plot_explanation(explain_pair(made(), "a", "a"), tmp_path / "x.pdf")
    assert len(written) == 2
    assert written[0].startswith("not in the vocabulary: ")
    assert written[1].startswith("words cut from the hypothesis's end")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize(
    ("premise", "hypothesis"),
    [
        ("a very long premise " * 10, "x " * 23 + "immeasurablyverylonghypotheticalword y " * 3),
        (
            "两只 狗 在草地上奔跑着追逐一个红色的球玩耍 강아지",
            "動物 高兴地在户外奔跑 走れ " * 3,
        ),  # two places a character
        ("cafe\u0301 \u0928\u092e\u0938\u094d\u0924\u0947", ("x" + "\u030b" * 20 + " ") * 30),  # marks take none
    ],
    ids=["latin", "wide", "marks"],
)
def test_no_word_is_left_out_in_a_narrow_terminal(width, premise, hypothesis):
    """Each number of both tables is printed, however many parts they need."""
    from rich.cells import cell_len
    from rich.console import Console

    found = explain_pair(made(), premise, hypothesis)
    console = Console(width=width, record=True)
    print_alignment(found, console)
    lines = console.export_text().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "…" not in re.sub(r"\w{6,}…", "", "".join(lines))  # a word is shortened, but not to nothing
    cells = sum(len(re.findall(r"(?<!\S)(?:\d+|·)(?!\S)", line)) for line in lines if "sum to" not in line)
    assert cells == 2 * len(found.premise) * len(found.hypothesis)


class Page(HTMLParser):
    """Tags that are open, all tags and attributes that there are, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone_and_escapes(run, tmp_path):
    shown = run(HOSTILE, TEXTS[0][1], "--out", tmp_path / "page.html")
    assert shown.exit_code == 0, shown.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    read = Page(text)
    assert read.open == []
    assert not read.tags & {"script", "link", "img", "iframe"}
    assert {name for name, _ in read.attributes} <= {
        *("lang", "charset", "name", "content", "class", "style", "scope", "tabindex", "role", "aria-label"),
    }
    assert not re.search(r"https?:|url\(|@import", text)
    assert "alert('x')</script>" in "".join(read.words)
    assert {"main", "caption", "th", "h1", "h2", "title"} <= read.tags
    assert ("lang", "en") in read.attributes
    assert "prefers-color-scheme: dark" in text
    found = explain_pair(load_checkpoint(tmp_path), HOSTILE, TEXTS[0][1])
    assert all(f"{value:+.3f}" in read.words for value in found.contributions_a.tolist())


def luminance(colour):
    numbers = [int(colour[1:][i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in numbers]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_ground(scheme):
    """WCAG 2.2's 4.5 : 1, where the shade is strongest too."""
    blocks = re.findall(r":root \{([^}]*)\}", _STYLE)
    colours = {
        name: "#" + "".join(2 * c for c in value) if len(value) == 3 else "#" + value
        for name, value in re.findall(r"--([a-z]+): #([0-9a-f]+)", blocks[scheme])
    }
    pairs = [("text", "ground"), ("quiet", "ground"), ("text", "for"), ("text", "against")]
    for ink, ground in pairs:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_a_plot(run, tmp_path):
    shown = run(*TEXTS[0], "--out", tmp_path / "x.png")
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    shown = run(*TEXTS[0], "--out", tmp_path / "x.nonesuch")
    assert shown.exit_code == 1
    assert "nonesuch" in shown.stderr


@pytest.mark.parametrize("name", ["nowhere/x.html", "nowhere/x.png", ".", "x" * 250 + ".svg", "x.bmpp", "x"])
def test_where_nothing_can_be_written_is_said_before_anything_is_read(tmp_path, name):
    """Here there is no model either."""
    shown = CliRunner().invoke(app, ["explain", str(tmp_path / "nonesuch"), "a", "b", "--out", str(tmp_path / name)])
    assert shown.exit_code == 1
    assert str(tmp_path / name) in shown.stderr
    assert "nonesuch" not in shown.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_picture_that_can_not_be_drawn_leaves_the_previous_one(run, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(figure, path, **options):
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    (tmp_path / "x.png").write_text("before")
    monkeypatch.setattr(Figure, "savefig", fail)
    assert run(*TEXTS[0], "--out", tmp_path / "x.png").exit_code == 1
    assert (tmp_path / "x.png").read_text() == "before"


def test_words_are_never_markup(tmp_path):
    """Neither rich's nor matplotlib's mathematics."""
    from rich.console import Console

    found = explain_pair(made(), "$x^{$ [red] dogs $", "a [/] $cat$")
    console = Console(width=200, record=True)
    print_explanation(found, console)
    assert "[red]" in console.export_text()
    plot_explanation(found, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 1000


def test_what_is_no_character_is_drawn_as_a_question_mark(tmp_path):
    """Of words and of labels."""
    checkpoint = made(labels=("yes\udcff", "no\udcff", "perhaps\udcff"))
    plot_explanation(explain_pair(checkpoint, "a \udcff", "b \udcfe"), tmp_path / "x.svg")
    plot_alignment(align_words(["a", "\udcff"], ["b", "\udcfe"]), tmp_path / "y.svg")
    for name, times in (("x.svg", 6), ("y.svg", 3)):  # the second picture's maps share an axis
        assert (tmp_path / name).read_text().count("<!-- ? -->") == times


@pytest.mark.parametrize("words", [("", "b"), ("a", "b", "--backend", "nonesuch")])
def test_bad_input_is_named(run, words):
    shown = run(*words)
    assert shown.exit_code == 1
    assert shown.stderr.startswith("error:")
    assert "Traceback" not in shown.output
