"""One self-contained HTML page: sections of notes, tables and pictures."""

import dataclasses
import io
import pathlib
import re

import jinja2

from vit_ssl_jax import cli

# Stands for the page's text color, which follows the reader's theme.
TEXT = "#010203"
STYLE = {  # of matplotlib, while a page is built
  "axes.edgecolor": TEXT,
  "axes.labelcolor": TEXT,
  "text.color": TEXT,
  "xtick.color": TEXT,
  "ytick.color": TEXT,
  "axes.facecolor": "none",
  "legend.framealpha": 0,
  "image.composite_image": False,  # it darkens transparent images
  "svg.fonttype": "none",
  "svg.hashsalt": "vit-ssl-jax",  # reproducible
}
DPI = 120  # of images in a figure


@dataclasses.dataclass
class Section:
  """A titled part of the page; its methods append to it."""

  title: str
  parts: list = dataclasses.field(default_factory=list)

  def note(self, text):
    self.parts.append({"kind": "note", "text": text})

  def code(self, text):
    self.parts.append({"kind": "code", "text": text})

  def table(self, header, rows):
    """Appends a table; cells are formatted as in `cli.table`."""
    rows = [[cli.cell(x) for x in row] for row in rows]
    self.parts.append({"kind": "table", "header": header, "rows": rows})

  def curves(self, figs):
    """Appends matplotlib figures, side by side where there is room."""
    self.parts.append({"kind": "svg", "figures": [svg(fig) for fig in figs]})

  def picture(self, label, fig):
    """Appends a matplotlib figure in its own size."""
    width = fig.get_figwidth()
    part = {"kind": "picture", "figure": svg(fig), "width": width, "alt": label}
    self.parts.append(part)


def svg(fig):
  """Renders a figure as a transparent SVG element that fills its column."""
  stream = io.StringIO()
  none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
  fig.savefig(stream, format="svg", transparent=True, metadata=none, dpi=DPI)
  text = stream.getvalue().replace(TEXT, "currentColor").partition("<svg ")[2]
  return "<svg " + re.sub(r'width="\S+" height="\S+"', "", text, count=1)


def render(title, subtitle, sections):
  """Renders the page, HTML."""
  source = pathlib.Path(__file__).with_name("page.html").read_text()
  template = jinja2.Environment(
    autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
  ).from_string(source)
  return template.render(title=title, subtitle=subtitle, sections=sections)
