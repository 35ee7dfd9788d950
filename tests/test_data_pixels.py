"""Stored images of every kind to square RGB bytes, and what is broken."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from vit_ssl_jax.data import pixels
from vit_ssl_jax.data.pixels import (
  BrokenImageError,
  decode,
  decode_all,
  resized,
)
from vit_ssl_jax.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 8, 3), np.uint8)
GREY = RNG.integers(0, 256, (8, 8), np.uint8)
ALPHA = np.resize(np.array([255, 0, 128, 255], np.uint8), (8, 8))
DEEP = RNG.integers(0, 65536, (8, 8), np.uint16)
LOSSLESS = {"PNG": {}, "BMP": {}, "WEBP": {"lossless": True}}


def stored(image, form="PNG", **options):
  """The bytes of an image, (H, W[, C]) or Pillow's, in a format."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def png(rows, bits, colour, **chunks):
  """A PNG that Pillow would not write; rows (H, W, C) of big-endian samples."""

  def chunk(name, body):
    check = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

  high, wide = rows.shape[:2]
  head = struct.pack(">IIBBBBB", wide, high, bits, colour, 0, 0, 0)
  body = b"".join(b"\0" + row.tobytes() for row in rows)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    + chunk(b"IDAT", zlib.compress(body))
    + chunk(b"IEND", b"")
  )


def on_white(colour, alpha):
  share = alpha[..., None] / 255
  return colour * share + 255 * (1 - share)


def grey(values):
  return np.repeat(np.asarray(values)[..., None], 3, -1)


def palette(transparency=None):
  """A palette image of 4 colours: the colours it shows, and its bytes."""
  index = (np.arange(64) % 4).astype(np.uint8).reshape(8, 8)
  colours = np.array([[250, 0, 9], [0, 240, 0], [0, 8, 230], [90, 80, 70]])
  image = Image.fromarray(index)
  image.putpalette(colours.astype(np.uint8).tobytes())
  options = {} if transparency is None else {"transparency": transparency}
  alpha = np.array([255] * 4)
  if isinstance(transparency, int):
    alpha[transparency] = 0
  elif transparency:
    alpha = np.array(list(transparency))
  return on_white(colours[index], alpha[index]), stored(image, **options)


def rgb_key():
  """An RGB image in which one colour is transparent."""
  want = RGB.copy()
  want[0, 0] = 255
  key = struct.pack(">HHH", *RGB[0, 0])
  return want, png(RGB, 8, 2, tRNS=key)


def grey_key():
  want = np.where(GREY[0, 0] == GREY, 255, GREY)
  key = struct.pack(">H", GREY[0, 0])
  return grey(want), png(GREY[..., None], 8, 0, tRNS=key)


KINDS = {
  "RGB": lambda: (RGB, stored(RGB)),
  "L": lambda: (grey(GREY), stored(GREY)),
  "1": lambda: (grey((GREY > 99) * 255), stored(Image.fromarray(GREY > 99))),
  "P": palette,
  "P, one colour transparent": lambda: palette(1),
  "P, translucent": lambda: palette(bytes([255, 0, 128, 255])),
  "RGBA": lambda: (on_white(RGB, ALPHA), stored(np.dstack([RGB, ALPHA]))),
  "LA": lambda: (
    on_white(grey(GREY), ALPHA),
    stored(Image.merge("LA", [Image.fromarray(x) for x in (GREY, ALPHA)])),
  ),
  "RGB with a colour key": rgb_key,
  "L with a colour key": grey_key,
  "16-bit grey": lambda: (grey((DEEP / 257).round()), stored(DEEP)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png(kind):
  want, data = KINDS[kind]()
  got = decode(data, 8, "crop")
  assert got.shape == (8, 8, 3)
  assert got.dtype == np.uint8
  np.testing.assert_allclose(got.astype(float), want, atol=1.01)
  if "transparent" not in kind:
    opaque = np.abs(want - np.round(want)) < 1e-9
    np.testing.assert_array_equal(got[opaque], want[opaque])


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_keep_their_pixels(tmp_path, form):
  data = stored(RGB, form, **LOSSLESS[form])
  np.testing.assert_array_equal(decode(data, 8, "squash"), RGB)
  (tmp_path / "a").write_bytes(data)
  np.testing.assert_array_equal(decode(tmp_path / "a", 8, "crop"), RGB)
  np.testing.assert_array_equal(decode(f"{tmp_path}/a", 8, "crop"), RGB)


def test_jpeg_cmyk_and_gif():
  smooth = Image.fromarray(RGB).resize((64, 64), Image.Resampling.BICUBIC)
  data = stored(smooth, "JPEG", quality=90)
  want = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(decode(data, 64, "crop"), want)
  cmyk = Image.new("RGB", (16, 16), (200, 40, 30)).convert("CMYK")
  got = decode(stored(cmyk, "JPEG", quality=100), 16, "crop")
  np.testing.assert_allclose(got.astype(int) - (200, 40, 30), 0, atol=6)
  frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
  data = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
  assert (decode(data, 8, "crop") == [255, 0, 0]).all()


def as_stored(upright, orientation):
  """What a camera stores, by the EXIF standard's rows and columns."""
  turned = upright.swapaxes(0, 1)
  return {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: turned,
    6: turned[::-1],
    7: turned[::-1, ::-1],
    8: turned[:, ::-1],
  }[orientation]


def exif(orientation):
  tags = Image.Exif()
  tags[ExifTags.Base.Orientation] = orientation
  return tags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
  tags = exif(orientation)
  for form in ("PNG", "WEBP"):
    image = np.ascontiguousarray(as_stored(RGB, orientation))
    data = stored(image, form, exif=tags, **LOSSLESS[form])
    np.testing.assert_array_equal(decode(data, 8, "crop"), RGB)
  # Not square: bright at the top left, and the middle is cropped.
  upright = np.zeros((16, 48), np.uint8)
  upright[:8, 16:24] = 255
  image = np.ascontiguousarray(as_stored(upright, orientation))
  data = stored(image, "JPEG", exif=tags)
  got = decode(data, 16, "crop")[..., 0].astype(float)
  want = np.zeros((16, 16))
  want[:8, :8] = 255
  np.testing.assert_allclose(got, want, atol=30)


@pytest.mark.parametrize(
  "tags",
  [
    b"Exif\0\0nonsense",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40)),
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\x7f\x00\x01",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
  ],
  ids=["text", "too many", "too long", "no orientation"],
)
def test_damaged_exif_changes_nothing_and_warns_of_nothing(tags):
  image = Image.new("RGB", (16, 16), (200, 100, 50))
  got = decode(stored(image, "JPEG", exif=tags), 16, "crop")
  np.testing.assert_allclose(got.astype(int) - (200, 100, 50), 0, atol=3)


def test_crop_keeps_the_middle_and_squash_everything():
  wide = np.zeros((8, 24, 3), np.uint8)
  for third in range(3):
    wide[:, 8 * third : 8 * third + 8, third] = 255
  for image in (wide, wide.swapaxes(0, 1)):
    image = np.ascontiguousarray(image)
    crop = decode(stored(image), 8, "crop")
    assert (crop == [0, 255, 0]).all()
    squash = decode(stored(image), 8, "squash")
    assert (squash[0, 0] == [255, 0, 0]).all()
    assert (squash[-1, -1] == [0, 0, 255]).all()


def everything(out, files):
  """The broken images of `decode_all`."""
  return decode_all(out, files, "crop")[1]


NOISE = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8))
WHOLE = {form: stored(NOISE, form) for form in pixels.FORMATS}


@pytest.mark.parametrize("form", WHOLE)
def test_truncated_images_are_broken(form):
  data = WHOLE[form]
  decode(data, 8, "crop")
  for share in (0.02, 0.3, 0.6, 0.95):
    with pytest.raises(BrokenImageError) as caught:
      decode(data[: int(share * len(data))], 8, "crop")
    assert 3 < len(str(caught.value)) <= 120
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("data", "why"),
  [
    (b"", "empty"),
    (b"<html>404</html>", "no JPEG, PNG, WebP, BMP or GIF image"),
    (stored(RGB, "TIFF"), "no JPEG"),
    (png(RGB[:0], 8, 2), "."),
    (WHOLE["PNG"][:60] + bytes(40) + WHOLE["PNG"][100:], "."),
  ],
)
def test_what_is_broken(data, why):
  with pytest.raises(BrokenImageError, match=why):
    decode(data, 8, "crop")


def test_large_images_are_decoded_and_bombs_are_not(monkeypatch):
  data = stored(RGB)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
  np.testing.assert_array_equal(decode(data, 8, "crop"), RGB)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
  with pytest.raises(BrokenImageError, match="64 pixels"):
    decode(data, 8, "crop")


def test_files_that_cannot_be_read(tmp_path):
  for path in (tmp_path / "absent.jpg", tmp_path):
    with pytest.raises(UserError, match=rf"^{path} cannot be read: .*[^.]$"):
      decode(path, 8, "crop")


def test_decode_all_in_order_and_with_reasons(tmp_path):
  images = RNG.integers(0, 256, (100, 8, 8, 3), np.uint8)
  files = [stored(image) for image in images]
  files[7], files[99] = b"", files[99][:50]
  out = np.lib.format.open_memmap(
    tmp_path / "a.npy", "w+", np.uint8, images.shape
  )
  out[:] = 99
  before = warnings.filters.copy()
  broken = everything(out, iter(files))
  assert warnings.filters == before
  assert list(broken) == [7, 99]
  assert broken[7] == "empty"
  images[[7, 99]] = 0
  np.testing.assert_array_equal(out, images)


def test_fingerprints_tell_images_apart_at_any_size():
  grey = np.repeat(GREY[..., None], 3, -1)
  files = [stored(RGB), stored(RGB, "BMP"), RGB, stored(RGB[:4]), RGB[::-1]]
  files += [stored(GREY), GREY, grey, stored(RGB.reshape(4, 16, 3))]
  found = []
  for size, resize in ((8, "crop"), (5, "crop"), (16, "squash")):
    out = np.empty((len(files), size, size, 3), np.uint8)
    marks, _ = decode_all(out, files, resize, label="x", progress=False)
    assert marks.dtype == np.uint64
    found.append(marks.tolist())
  assert found[0] == found[1] == found[2]
  assert [found[0].index(mark) for mark in found[0]] == [
    0, 0, 0, 3, 4, 5, 5, 5, 8,
  ]  # fmt: skip


def test_decode_all_of_nothing_and_of_a_wrong_number():
  assert everything(np.empty((0, 8, 8, 3), np.uint8), []) == {}
  for count in (4, 6, 30):
    with pytest.raises(ValueError, match="5 rows"):
      everything(np.empty((5, 8, 8, 3), np.uint8), [stored(RGB)] * count)
  with pytest.raises(UserError, match="absent"):
    everything(np.empty((5, 8, 8, 3), np.uint8), ["absent"] * 5)


def test_decode_all_reads_only_a_little_ahead(monkeypatch):
  monkeypatch.setattr(pixels, "cores", lambda: 2)
  most = 2 * pixels.BATCH
  done, ahead = [], []
  lock = threading.Lock()
  real = pixels.decode_stored

  def count(*arguments):
    with lock:
      done.append(1)
    return real(*arguments)

  def files():
    for i in range(1000):
      ahead.append(i - len(done))
      yield data

  data = stored(RGB)
  monkeypatch.setattr(pixels, "decode_stored", count)
  out = np.empty((1000, 8, 8, 3), np.uint8)
  everything(out, files())
  assert max(ahead) <= most
  assert (out == RGB).all()


@pytest.mark.parametrize("resize", pixels.RESIZES)
def test_arrays_become_what_files_of_them_become(resize):
  images = RNG.integers(0, 256, (20, 12, 10, 3), np.uint8)
  got = resized(images, 8, resize)
  assert got.shape == (20, 8, 8, 3)
  for image, one in zip(images, got, strict=True):
    np.testing.assert_array_equal(one, decode(stored(image), 8, resize))
