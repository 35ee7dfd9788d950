"""One self-contained HTML page: sections of notes, tables and pictures."""

import dataclasses
import io
import pathlib
import re

import jinja2
import matplotlib as mpl

from vit_ssl_jax import cli

# Drawn in this color, and then in that of the page's text.
TEXT = "#010203"
STYLE = {
  "axes.edgecolor": TEXT,
  "axes.labelcolor": TEXT,
  "text.color": TEXT,
  "xtick.color": TEXT,
  "ytick.color": TEXT,
  "axes.facecolor": "none",
  "legend.framealpha": 0,
  "image.composite_image": False,  # which darkens what lies on transparent
  "svg.fonttype": "none",
  "svg.hashsalt": "vit-ssl-jax",  # so that the same curves are the same file
}
DPI = 120  # of images in a figure


@dataclasses.dataclass
class Section:
  """A part of the page with a title; the methods add to it, in order."""

  title: str
  parts: list = dataclasses.field(default_factory=list)

  def note(self, text):
    self.parts.append({"kind": "note", "text": text})

  def code(self, text):
    self.parts.append({"kind": "code", "text": text})

  def table(self, header, rows):
    """Cells as of `cli.table`."""
    rows = [[cli.cell(x) for x in row] for row in rows]
    self.parts.append({"kind": "table", "header": header, "rows": rows})

  def curves(self, figs):
    """Matplotlib figures, in `STYLE`, side by side where there is room."""
    self.parts.append({"kind": "svg", "figures": [svg(fig) for fig in figs]})

  def picture(self, label, draw):
    """Adds the figure that `draw()` returns, in its own size."""
    with mpl.rc_context(STYLE):
      fig = draw()
    width = fig.get_figwidth()
    part = {"kind": "picture", "figure": svg(fig), "width": width, "alt": label}
    self.parts.append(part)


def svg(fig):
  """A figure as an SVG element without a size, transparent, in text's color."""
  stream = io.StringIO()
  nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
  with mpl.rc_context(STYLE):
    fig.savefig(
      stream, format="svg", transparent=True, metadata=nothing, dpi=DPI
    )
  text = stream.getvalue().replace(TEXT, "currentColor").partition("<svg ")[2]
  # Without a size of its own it fills its column.
  return "<svg " + re.sub(r'width="\S+" height="\S+"', "", text, count=1)


def render(title, subtitle, sections):
  """The page, HTML."""
  source = pathlib.Path(__file__).with_name("page.html").read_text()
  template = jinja2.Environment(
    autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
  ).from_string(source)
  return template.render(title=title, subtitle=subtitle, sections=sections)
