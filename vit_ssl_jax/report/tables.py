"""Plain-text tables."""


def table(header, rows):
  """Lays out a table in columns.

  Args:
    header: the columns' titles.
    rows: sequences of as many cells; None shows as "-", floats with two
      decimals.

  Returns:
    The table as text, numbers to the right, without a last line break.
  """
  lines = [list(header), *([cell(x) for x in row] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
    for first, *others in lines
  )


def cell(value):
  if value is None:
    return "-"
  return f"{value:.2f}" if isinstance(value, float) else str(value)
