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
  cells = [[cell(x) for x in row] for row in rows]
  widths = [
    max(map(len, column)) for column in zip(header, *cells, strict=True)
  ]
  lines = [list(header), ["-" * width for width in widths], *cells]
  return "\n".join(
    "  ".join(
      text.ljust(width) if i == 0 else text.rjust(width)
      for i, (text, width) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  )


def cell(value):
  if value is None:
    return "-"
  return f"{value:.2f}" if isinstance(value, float) else str(value)
