"""One self-contained HTML page: sections of notes, tables and pictures."""

import base64
import dataclasses
import io
import pathlib
import re

import jinja2

from vit_ssl_jax.report import tables

# Drawn in this color, and then in that of the page's text.
TEXT = "#010203"


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
    """Cells as of `tables.table`."""
    rows = [[tables.cell(x) for x in row] for row in rows]
    self.parts.append({"kind": "table", "header": header, "rows": rows})

  def curves(self, figs):
    """Matplotlib figures, drawn in `TEXT`, side by side where there is room."""
    found = []
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    for fig in figs:
      stream = io.StringIO()
      fig.savefig(stream, format="svg", transparent=True, metadata=nothing)
      text = stream.getvalue().replace(TEXT, "currentColor")
      text = text.partition("<svg ")[2]
      # Without a size of its own it fills its column.
      text = re.sub(r'width="\S+" height="\S+"', "", text, count=1)
      found.append(f"<svg {text}")
    self.parts.append({"kind": "svg", "figures": found})

  def image(self, draw, alt):
    """A picture that `draw` (file) makes, a PNG."""
    stream = io.BytesIO()
    draw(stream)
    text = base64.b64encode(stream.getvalue()).decode()
    self.parts.append({"kind": "image", "text": text, "alt": alt})


def render(title, subtitle, sections):
  """The page, HTML."""
  source = pathlib.Path(__file__).with_name("page.html").read_text()
  template = jinja2.Environment(
    autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
  ).from_string(source)
  return template.render(title=title, subtitle=subtitle, sections=sections)
