"""Accuracy over seeds: intervals, and gains paired by seed."""

import pytest

from vit_ssl_jax.report import __main__ as report, curves, seeds


def run(seed, top1, init_from="", **changes):
  """A fine-tuning as `report.read` gives it."""
  config = {"model": {"name": "vit", "depth": 9}, "dataset": "cifar10"}
  config |= {"data_fraction": 1.0, "seed": seed, "split_seed": 0}
  config |= {"init_from": init_from, "epochs": 300, "log_every_steps": 20}
  title = f"{init_from}{seed}{changes}"
  return {"title": title, "config": config | changes, "result": {"top1": top1}}


SCRATCH = [run(0, 90.0), run(1, 91.0), run(2, 92.0), run(3, 10.0)]
PRETRAINED = [run(2, 96.0, "C"), run(0, 95.0, "A"), run(1, 97.0, "B")]
ALL = "vit, 100 % of the images"


def test_interval_by_hand():
  # Mean 2, standard deviation 1; t is 4.30265 with two degrees of freedom.
  assert seeds.interval([1, 2, 3]) == pytest.approx((-0.48414, 4.48414), 1e-4)
  # Mean 5, deviation sqrt(2); t is 12.7062 with one.
  assert seeds.interval([4.0, 6.0]) == pytest.approx((-7.7062, 17.7062), 1e-5)
  assert seeds.interval([90.0]) is None


def test_gains_are_paired_by_seed():
  found = seeds.groups(SCRATCH + PRETRAINED)
  # 5, 6 and 4 points; the seed without a partner does not count.
  assert seeds.gains(found) == {ALL: [5.0, 6.0, 4.0]}
  assert list(seeds.rows(seeds.gains(found), "+")) == [
    (ALL, 3, "+5.00", 1.0, "+2.52 to +7.48")
  ]


def test_one_seed_has_no_interval():
  found = seeds.groups([SCRATCH[0], PRETRAINED[1]])
  rows = list(seeds.rows(seeds.accuracies(found)))
  assert rows == [
    (f"{ALL}, from scratch", 1, "90.00", None, None),
    (f"{ALL}, pretrained", 1, "95.00", None, None),
  ]


@pytest.mark.parametrize(
  ("changes", "titles"),
  [
    ({"epochs": 9}, [f"{ALL}, epochs 300", f"{ALL}, epochs 9"]),
    ({"data_fraction": 0.25}, [ALL, "vit, 25 % of the images"]),
    (
      {"dataset": "svhn"},
      ["vit, cifar10, 100 % of the images", "vit, svhn, 100 % of the images"],
    ),
    (
      {"model": {"name": "vit", "depth": 3}},
      [f"{ALL}, model.depth 9", f"{ALL}, model.depth 3"],
    ),
    ({"model": {"name": "swin"}}, [ALL, "swin, 100 % of the images"]),
    ({"log_every_steps": 1}, [ALL]),
    ({"split_seed": 5}, [ALL]),
  ],
)
def test_only_repetitions_are_put_together(changes, titles):
  found = seeds.groups([run(0, 90.0), run(1, 80.0, **changes)])
  assert list(found) == titles
  assert sum(len(x["from scratch"]) for x in found.values()) == 2


def test_a_seed_that_is_repeated_stands_alone():
  found = seeds.groups([run(0, 95.0, "A"), run(0, 97.0, "B")])
  assert list(found) == [ALL, f"{ALL} (B0{{}})"]


def test_the_section_says_what_an_interval_is():
  section = report.side_by_side(SCRATCH + PRETRAINED)
  tables = [x for x in section.parts if x["kind"] == "table"]
  assert tables[0]["rows"][1] == [
    *(f"{ALL}, pretrained", "3", "96.00", "1.00", "93.52 to 98.48")
  ]
  assert tables[1]["rows"] == [[ALL, "3", "+5.00", "1.00", "+2.52 to +7.48"]]
  notes = [x["text"] for x in section.parts if x["kind"] == "note"]
  assert "Student's t" in notes[0]
  assert "paired" in notes[1]
  alone = report.side_by_side(SCRATCH)
  assert len([x for x in alone.parts if x["kind"] == "table"]) == 1


def test_bars_have_intervals():
  fig = curves.bars({"a": [1.0, 2.0, 3.0], "b": [50.0]})
  found = [x for x in fig.axes[0].containers if getattr(x, "has_xerr", False)]
  assert len(found) == 1  # one seed has none
  (line,) = found[0].lines[2]
  ends = line.get_segments()[0][:, 0]
  assert ends == pytest.approx([-0.48414, 4.48414], 1e-4)
