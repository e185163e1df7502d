"""The report page: its numbers, its sentences, and that it needs nothing from outside."""

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from convnextv2.data.sources.idx import FASHION_CLASSES
from convnextv2.tasks.classify import ClassCounts
from pipelines.report.charts import chart
from pipelines.report.page import ReportInput, render_report
from pipelines.report.summary import verdict
from pipelines.report.tables import confused_pairs
from pipelines.report.times import StageRow, duration
from pipelines.results import Result
from pipelines.results.classification import accuracies, single_label
from pipelines.runtime.drivers import Span
from pipelines.runtime.events import Event, Interval, Point, Rejected, Start, Validation
from pipelines.runtime.goodput import account_of
from tests.pipelines.report.made_up_run import (
    BEGAN,
    KILLED,
    frozen,
    made_up_input,
    made_up_result,
    of_several_classes,
    supervised,
    with_average,
    without_control,
)

NASTY = """<script>alert("x")</script> & 'y'"""


@pytest.fixture(scope="module")
def data() -> ReportInput:
    return made_up_input()


@pytest.fixture(scope="module")
def page(data: ReportInput) -> str:
    return render_report(data)


def words(page: str) -> str:
    """What a reader reads: no style, no tags, one space between words."""
    body = re.sub(r"</?b>", "", page[page.index("<body>") :])
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def svgs(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def test_verdict_and_table_show_the_computed_numbers(page: str) -> None:
    text = words(page)
    sentence = "FCMAE pretraining lifts top-1 at 1,000 labels from 77.0% to 79.6% (+2.6 points)."
    assert sentence in text
    assert "pretrained 79.6% 98.7% 10,000 from scratch 77.0% 98.7% 10,000 gain, points +2.6" in text
    assert "± 1.1 points" in text
    # Recall and gain of the class that gained most, and one confusion: 1000 - 660 = 340, 227 next.
    assert "Pullover 66.0% 60.0% +6.0" in text
    assert ">227</td>" in page


@pytest.mark.parametrize(
    ("pretrained", "scratch", "expected"),
    [
        (0.796, 0.770, "lifts top-1 at 1,000 labels from 77.0% to 79.6% (+2.6 points)."),
        (0.740, 0.770, "lowers top-1 at 1,000 labels from 77.0% to 74.0% (−3.0 points)."),
        (0.775, 0.770, "(+0.5 points), a difference that 1,000 test images cannot tell from"),
        (0.7703, 0.770, "leaves top-1 at 1,000 labels at 77.0%, as without it."),
    ],
)
def test_verdict_is_honest(pretrained: float, scratch: float, expected: str) -> None:
    def scored(top1: float, images: int) -> Result:
        return Result(metrics=accuracies(top1 * images, images, images))

    images = 1_000 if abs(pretrained - scratch) < 0.01 else 10_000
    results = {"pretrained": scored(pretrained, images), "scratch": scored(scratch, images)}
    sentence = verdict(results, 1000, pretraining="FCMAE pretraining")
    assert sentence.startswith("FCMAE pretraining ")
    assert expected in sentence


class Loads(HTMLParser):
    """Notes the tags of a page and what its attributes would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        loading = ("src", "href", "data", "srcset")
        self.addresses += [value or "" for name, value in attrs if name in loading]


def test_page_loads_nothing(page: str) -> None:
    loads = Loads(page)
    assert loads.tags.isdisjoint({"script", "iframe", "object", "embed", "base"})
    assert len([address for address in loads.addresses if address.startswith("data:image")]) == 24
    assert all(address.startswith("data:") for address in loads.addresses)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", page)
    assert "default-src 'none'" in page


def test_user_text_is_escaped(data: ReportInput) -> None:
    nasty = dataclasses.replace(
        data,
        title=NASTY,
        command=NASTY,
        config={"name": NASTY},
        versions={NASTY: NASTY},
        commit=NASTY,
        facts={NASTY: NASTY},
        mlflow_hint=NASTY,
        stages=[StageRow(name=NASTY, seconds=1, status=NASTY, finished=0)],
        results={
            name: made_up_result((NASTY, *"abcdefghi"), np.full(10, 0.5)) for name in data.results
        },
        event_logs={
            "pretrain": [
                *data.event_logs["pretrain"],
                Rejected(step=0, time=0, path=f"/x/{NASTY}", reason=NASTY),
            ]
        },
        accounts={},
    )
    page = render_report(nasty)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 15


def test_restarts_and_rejected_checkpoints_are_told(data: ReportInput, page: str) -> None:
    assert (
        "Pretraining: worker group was restarted once; training went on from step 400 with "
        "2 workers." in words(page)
    )
    reason = "model.pt is 12 bytes short"
    extra: list[Event] = [
        Rejected(step=0, time=0, path="run/checkpoints/step-800", reason=reason),
        Start(step=700, time=0, workers=1, total=1240),
    ]
    lines = data.event_logs["pretrain"]
    again = dataclasses.replace(data, event_logs={**data.event_logs, "pretrain": [*lines, *extra]})
    text = words(render_report(again))
    assert "2 times; training went on from step 400 with 2 workers, then from step 700" in text
    assert "checkpoint step-800 was rejected: model.pt is 12 bytes short." in text
    finetune = {"finetune": data.event_logs["finetune"]}
    calm = dataclasses.replace(data, event_logs=finetune, incidents=())
    assert "None: no worker group was restarted, no checkpoint was rejected." in words(
        render_report(calm)
    )


def test_time_is_told_by_stage_and_by_phase(page: str) -> None:
    text = words(page)
    assert "5 min 59 s for this command, up to this page." in text
    assert "The stages that were done before took 14 s." in text
    assert "Writing data 14 s done before Pretraining 3 min 23 s run now" in text
    assert "Between stages, and this page 8.4 s now" in text
    assert "Goodput of training: 57.7% of 5 min 38 s was spent on productive steps." in text
    # Of the killed group steps up to 400 count; the second did 1240.
    assert "goodput 64.6%; 1,240 steps, 158,720 images" in text
    assert "productive steps 2 min 11 s set-up 29 s waiting for data 9.8 s" in text
    assert "lost steps 2.5 s restart 20 s" in text
    assert "1,240 steps, 158,720 images, 782 images/s over the whole time" in text
    # What is too short to be told is left out.
    assert " 0.0 s" not in text


def test_the_last_interval_between_checkpoints_is_told(data: ReportInput, page: str) -> None:
    assert "checkpoint_every: auto" not in words(page)
    values = {"step_seconds": 0.5, "block_seconds": 0.02, "hours_to_failure": 9.5, "failures": 1}
    chosen = [Interval(step=at, time=0, values={**values, "interval_steps": at}) for at in (50, 90)]
    lines = [*data.event_logs["pretrain"], *chosen]
    again = dataclasses.replace(data, event_logs={**data.event_logs, "pretrain": lines})
    assert (
        "Chosen by checkpoint_every: auto : from step 90 on, a checkpoint every 90 steps (45 s): it"
        in words(render_report(again))
    )


def test_times_add_up_to_the_wall_time(data: ReportInput, page: str) -> None:
    section = page[page.index("<h2>Where the time went") : page.index("<h2>Incidents")]
    bars, *trainings = re.split(r'<div class="training">', section)
    rows = re.findall(
        r'width:[\d.]+%"></span></span>\s*<span class="number">(.*?)</span>\s*'
        r"<span><small>(.*?)</small>", bars
    )  # fmt: skip
    now = [seconds(time) for time, status in rows if status in ("run now", "resumed", "now")]
    assert len(rows) == len(data.stages) + 1
    assert sum(now) == pytest.approx(data.wall_seconds, abs=0.5 * len(now))
    for account, training in zip(data.accounts.values(), trainings, strict=True):
        widths = [float(width) for width in re.findall(r"width:([\d.]+)%", training)]
        assert sum(widths) == pytest.approx(100, abs=0.1)
        told = re.findall(r"</i>\D+([\d.]+ .*?)</li>", training)
        assert sum(map(seconds, told)) == pytest.approx(account.wall, abs=0.5 * len(told))


def test_without_any_stage_there_is_a_page(data: ReportInput) -> None:
    bare = dataclasses.replace(
        data,
        stages=[],
        event_logs={},
        accounts={},
        results={},
        reconstruction=None,
        wall_seconds=3.0,
    )
    assert "3.0 s for this command" in words(render_report(bare))


def seconds(words: str) -> float:
    """What `duration` made words of."""
    number = iter(words.split())
    return sum(float(count) * {"h": 3600, "min": 60, "s": 1}[next(number)] for count in number)


def test_time_between_two_commands_is_idle(data: ReportInput) -> None:
    # The driver was killed, too, with its workers, and started again a minute later.
    lines = data.event_logs["pretrain"]
    second = [event for event in lines if isinstance(event, Start)][1]
    died = lines[lines.index(second) - 1].time + 1.0
    spans = [Span(BEGAN, died), Span(second.time - 9, lines[-1].time)]
    later = account_of("pretrain", lines, spans)
    page = render_report(dataclasses.replace(data, accounts={"pretrain": later}, incidents=()))
    idle = duration(spans[1].began - died)
    assert f"restart 9.0 s idle, no driver {idle}" in words(page)
    assert "Incidents" not in words(page)


def test_incidents_are_listed(data: ReportInput, page: str) -> None:
    row = "killed by SIGKILL Pretraining killed 1 10.0.0.7 step 423 23 10 s"
    assert row in words(page)
    going_on = dataclasses.replace(KILLED, recovered=False, step=-1, error=NASTY)
    page = render_report(dataclasses.replace(data, incidents=[going_on]))
    assert "10.0.0.7 step – – not recovered" in words(page)
    assert "<script" not in page


def test_without_control(data: ReportInput) -> None:
    page = render_report(without_control(data))
    text = words(page)
    assert "the model reaches 79.6% top-1; there is no baseline from scratch" in text
    assert "from scratch" not in text.split("to compare with.")[1]
    assert "gain, points" not in text
    assert len(svgs(page)) == 3


def test_the_average_stands_beside_the_weights(data: ReportInput) -> None:
    text = words(render_report(with_average(data)))
    table = (
        "pretrained 79.6% 98.7% 10,000 pretrained, EMA 80.6% 98.7% 10,000 "
        "from scratch 77.0% 98.7% 10,000 from scratch, EMA 78.0% 98.7% 10,000 gain, points +2.6"
    )
    assert table in text
    assert "from 77.0% to 79.6% (+2.6 points)" in text


def test_frozen_features_alone(data: ReportInput) -> None:
    page = render_report(frozen(data))
    text = words(page)
    assert (
        "On the frozen features of FCMAE pretraining, a linear classifier with 1,000 labels "
        "reaches 79.6% top-1 and nearest neighbours reach 61.2% top-1." in text
    )
    assert "linear probe 79.6% 98.7% 10,000 nearest neighbours 61.2% 83.0% 10,000" in text
    assert "gain, points" not in text
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles == [
        "Pretraining loss",
        "Linear probe loss",
        "Linear probe accuracy on training batches",
    ]
    neighbours = frozen(data).results["neighbours"]
    neighbours_only = dataclasses.replace(frozen(data), results={"neighbours": neighbours})
    text = words(render_report(neighbours_only))
    assert "On the frozen features of FCMAE pretraining, nearest neighbours reach 61.2%" in text
    assert "Class by class" not in text
    nothing = dataclasses.replace(neighbours_only, results={})
    text = words(render_report(nothing))
    assert "FCMAE pretraining is done; nothing was evaluated." in text
    assert "Reconstructions of masked patches" in text


def test_from_scratch_alone(data: ReportInput) -> None:
    page = render_report(supervised(data))
    text = words(page)
    assert "Trained from scratch on 1,000 labels, the model reaches 77.0% top-1." in text
    assert "from scratch 77.0% 98.7% 10,000" in text
    assert "pretrain" not in text.replace("finetune", "").split("Do it again")[0].lower()
    assert all("var(--pretrained" not in svg for svg in svgs(page))


def test_what_was_measured_on_the_validation_split_is_drawn(data: ReportInput) -> None:
    looks = ((100, {"val_top1": 0.2}), (200, {"val_top1": 0.4, "val_top1_ema": 0.5}))
    lines = [Validation(step=step, time=1.76e9, values=values) for step, values in looks]
    event_logs = {**data.event_logs, "finetune": [*data.event_logs["finetune"], *lines]}
    page = render_report(dataclasses.replace(data, event_logs=event_logs))
    assert "<figcaption>Fine-tuning top-1 on the validation split</figcaption>" in page
    assert "<figcaption>Fine-tuning top-1 on the validation split, EMA</figcaption>" in page
    assert len(svgs(page)) == 5


def test_curves_that_were_not_measured_are_left_out(data: ReportInput) -> None:
    event_logs = {
        stage: [_without_accuracy(event) for event in lines]
        for stage, lines in data.event_logs.items()
    }
    page = render_report(dataclasses.replace(data, event_logs=event_logs))
    assert len(svgs(page)) == 2
    assert "accuracy" not in words(page)
    assert not svgs(render_report(dataclasses.replace(data, event_logs={})))


def _without_accuracy(event: Event) -> Event:
    if not isinstance(event, Point):
        return event
    values = {name: value for name, value in event.values.items() if name != "accuracy"}
    return dataclasses.replace(event, values=values)


def test_images_of_several_classes(data: ReportInput) -> None:
    """Their mAP stands first and is what is compared; there is no matrix of mistakes."""
    results = {
        name: of_several_classes(result, precision)
        for (name, result), precision in zip(data.results.items(), (0.625, 0.5), strict=True)
    }
    page = render_report(dataclasses.replace(data, results=results))
    text = re.sub(r"<[^>]*>", "", page)
    assert "lifts mAP at 1,000 labels from 50.0% to 62.5% (+12.5 points)" in text
    assert "<th>mAP</th>" in page
    assert "<td>62.5%</td>" in page
    assert "Average precision of each class" in page
    assert "Mistaken for one another" not in page
    assert "the gain is known to" not in page
    assert "<th>mAP</th>" not in render_report(data)


def test_classes_absent_from_the_test_set_have_no_recall(data: ReportInput) -> None:
    images = torch.tensor([0, *[1000] * 9])
    counts = ClassCounts(images, images, images.sum(), torch.diag(images))
    unknown = {name: single_label(counts, FASHION_CLASSES) for name in data.results}
    assert unknown["pretrained"].tables[0].rows[0] == ("T-shirt/top", None)
    text = words(render_report(dataclasses.replace(data, results=unknown)))
    assert "T-shirt/top – – –" in text
    assert "nan" not in text


def test_many_classes_show_the_most_confused_pairs_only(data: ReportInput) -> None:
    names = tuple(f"class {number}" for number in range(40))
    recalls = np.linspace(0.50, 0.89, 40)
    results = {
        "pretrained": made_up_result(names, recalls),
        "scratch": made_up_result(names, recalls - 0.05),
    }
    page = render_report(dataclasses.replace(data, results=results))
    assert 'class="matrix"' not in page
    # Class 0: 500 missed, 334 of them taken for class 1; from scratch 550 and 367.
    assert "class 0 class 1 334 33.4% 367" in words(page)
    assert "Shown are 30 of 40 classes" in words(page)
    pairs = confused_pairs(results["pretrained"].tables[1], None, most=30)
    assert len(pairs) == 30
    assert pairs == sorted(pairs, key=lambda pair: -pair.count)
    assert min(pair.count for pair in pairs) >= 160


def test_curves_are_well_formed_themed_and_the_same_each_time(data: ReportInput, page: str) -> None:
    assert page == render_report(data)
    pretraining, tuning, accuracy = svgs(page)
    identifiers: list[str] = []
    for svg in (pretraining, tuning, accuracy):
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert "width" not in root.attrib
        assert root.find(".//{http://www.w3.org/2000/svg}style") is None
        identifiers += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(identifiers) == len(set(identifiers))
    assert "restart</text>" in pretraining
    assert "restart</text>" not in tuning
    assert "var(--scratch" in tuning
    assert "var(--scratch" not in pretraining
    assert re.search(r">lr 0\.00\d+</text>", tuning)
    assert ">75%</text>" in accuracy


def test_points_that_a_restart_took_back_are_not_drawn(data: ReportInput, page: str) -> None:
    lines = data.event_logs["pretrain"]
    second = next(place for place, event in enumerate(lines) if isinstance(event, Start) and place)
    kept = [event for event in lines[:second] if event.step <= lines[second].step]
    kept += lines[second:]
    assert len(kept) == len(lines) - 2
    clean = dataclasses.replace(data, event_logs={**data.event_logs, "pretrain": kept})
    assert svgs(render_report(clean)) == svgs(page)


def test_long_curves_are_thinned_and_one_point_is_enough() -> None:
    points = [Point(step=step, values={"loss": 1 / step}) for step in range(1, 100_001)]
    assert len(chart("long", "loss", {"pretrained": points})) < 40_000
    ElementTree.fromstring(chart("short", "loss", {"pretrained": points[:1]}))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (9.97, "10 s"),
        (59.7, "1 min 0 s"),
        (214, "3 min 34 s"),
        (7390, "2 h 3 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
