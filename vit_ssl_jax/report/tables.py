"""Plain-text tables."""

import numpy as np


def table(header, rows, left=False):
  """Lays out a table in columns.

  Args:
    header: the columns' titles.
    rows: sequences of as many cells; None shows as "-", floats with two
      decimals.
    left: whether all columns begin at the left, as text does.

  Returns:
    The table as text, numbers to the right, without a last line break.
  """
  lines = [list(header), *([cell(x) for x in row] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * width for width in widths])
  align = str.ljust if left else str.rjust
  rows = (
    [first.ljust(widths[0]), *map(align, others, widths[1:])]
    for first, *others in lines
  )
  return "\n".join("  ".join(row).rstrip() for row in rows)


def cell(value):
  if value is None:
    return "-"
  return f"{value:.2f}" if isinstance(value, float) else str(value)


def mean(values):
  """The mean over seeds, and their standard deviation where there are more."""
  spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
  return f"{np.mean(values):.2f}{spread}"
