"""Films and compressed images of datasets: which frame belongs to which row, and files that lie."""

import io
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from poise.data import DataError
from poise.data.images import decode_image, encode_png
from poise.data.video import FilmWriter, decode_frames, film_seconds

av = pytest.importorskip("av", reason="PyAV is missing: pip install 'poise[video]'")
image = pytest.importorskip("PIL.Image", reason="Pillow is missing: pip install 'poise[images]'")


def numbered(count: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Frames whose brightness tells their number."""
    levels = (10 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, *size, 3)).copy()


def numbers_of(frames: np.ndarray) -> list[int]:
    return np.rint(frames.reshape(len(frames), -1).mean(1) / 10).astype(int).tolist()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    writer = FilmWriter(tmp_path / "film.mp4", 10.0, (32, 48))
    writer.append(numbered(24)[:9])
    writer.append(numbered(24)[9:])
    writer.close()
    assert writer.frames == 24
    assert 0 < writer.size < (tmp_path / "film.mp4").stat().st_size
    return tmp_path / "film.mp4"


@pytest.mark.parametrize("first", [0, 1, 7, 14, 23])
@pytest.mark.parametrize("shift", [0.0, 0.49, -0.49])
def test_a_row_is_the_nearest_frame_within_half_a_frame(film, first, shift):
    start = max(0.0, (first + shift) / 10)
    frames = decode_frames(film, "camera", start, min(5, 24 - first), 10.0, (32, 48, 3))
    assert numbers_of(frames) == [*range(first, min(first + 5, 24))]
    assert np.abs(frames.astype(int) - numbered(24)[first : first + 5]).max() <= 2


def test_a_film_of_twice_the_rate_gives_every_second_frame(film):
    assert numbers_of(decode_frames(film, "camera", 0.2, 6, 5.0, (32, 48, 3))) == [2, 4, 6, 8, 10, 12]
    grey = decode_frames(film, "camera", 0.5, 3, 10.0, (32, 48, 1))
    assert grey.shape == (3, 32, 48, 1)
    assert numbers_of(grey) == [5, 6, 7]


def test_frames_out_of_order_in_the_file_are_put_in_order(tmp_path):
    path = tmp_path / "b.mp4"  # H.264 with frames that are predicted from later ones
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(10), options={"bf": "3", "g": "12", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in numbered(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert numbers_of(decode_frames(path, "camera", 1.3, 9, 10.0, (32, 48, 3))) == [*range(13, 22)]


def test_a_short_film_names_the_row_that_it_lacks(film):
    assert film_seconds(film, "camera") == pytest.approx(2.4)
    message = r"film\.mp4: camera: has no frame at 2\.400 s, the one of row 4 of 6: the film is shorter"
    with pytest.raises(DataError, match=message):
        decode_frames(film, "camera", 2.0, 6, 10.0, (32, 48, 3))
    with pytest.raises(DataError, match=r"has frames 32 x 48, expected \(64, 48, 3\)"):
        decode_frames(film, "camera", 0.0, 6, 10.0, (64, 48, 3))
    with pytest.raises(DataError, match=r"is a film of shape \(32, 48\), expected \(H, W, C\) of 1 or 3 channels"):
        decode_frames(film, "camera", 0.0, 6, 10.0, (32, 48))


def test_a_broken_film_is_a_data_error(film, tmp_path):
    data, random = film.read_bytes(), np.random.default_rng(0)
    refused = []
    for trial in range(40):
        broken = bytearray(data)
        if trial % 2:
            broken = broken[: random.integers(len(data))]
        else:
            for place in random.integers(0, len(data), 20):
                broken[place] ^= 255
        (tmp_path / "broken.mp4").write_bytes(broken)
        try:
            decode_frames(tmp_path / "broken.mp4", "camera", 0.0, 24, 10.0, (32, 48, 3))
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all("broken.mp4: camera: " in message for message in refused)


def test_a_list_of_other_files_is_no_film(tmp_path, film):
    """FFmpeg reads lists of films by themselves, which would lead out of the dataset."""
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {film.name}\n")
    (tmp_path / "play.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.4,\n{film.name}\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "play.mp4", "absent.mp4"):
        with pytest.raises(DataError, match=f"{name}: camera: (is broken|does not exist)"):
            decode_frames(tmp_path / name, "camera", 0.0, 2, 10.0, (32, 48, 3))


def test_missing_packages_name_their_extras(film, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        ImportError,
        match=r"reading films needs the extra 'video' \(import of av halted.*\): pip install 'poise\[video\]'",
    ):
        film_seconds(film, "camera")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        ImportError, match=r"images need the extra 'images' \(import of PIL halted.*\): pip install 'poise\[images\]'"
    ):
        encode_png(numbered(1)[0])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_loses_nothing(channels):
    pixels = np.random.default_rng(channels).integers(0, 256, (7, 5, channels), dtype=np.uint8)
    assert np.array_equal(decode_image(Path("f"), "camera", encode_png(pixels), pixels.shape), pixels)


def coded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def test_pictures_of_a_palette_and_jpeg_are_read():
    pixels = np.kron(np.array([[0, 255], [128, 64]], np.uint8), np.ones((8, 8), np.uint8))
    colours, stream = np.stack([pixels, pixels // 2, 255 - pixels], -1), io.BytesIO()
    image.fromarray(colours).quantize(4).save(stream, "PNG")
    assert np.array_equal(decode_image(Path("f"), "c", stream.getvalue(), (16, 16, 3)), colours)
    grey = decode_image(Path("f"), "c", coded(pixels, "JPEG"), (16, 16, 1))
    assert np.abs(grey[..., 0] - pixels.astype(int)).max() <= 8


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        (coded(np.zeros((8, 8, 3), np.uint8)), (9, 8, 3), r"is an image \(8, 8, 3\), expected \(9, 8, 3\)"),
        (coded(np.zeros((8, 8), np.uint8)), (8, 8, 3), r"is an image \(8, 8, 1\), expected \(8, 8, 3\)"),
        (coded(np.zeros((8, 8), np.uint16)), (8, 8, 1), "is an image of mode I;16, expected L of 8 bits"),
        (coded(np.zeros((8, 8, 3), np.uint8)), (8, 8), r"got the shape \(8, 8\), expected \(H, W, C\)"),
        (coded(np.zeros((8, 8, 3), np.uint8)), (8000, 8000, 3), "declares 192000000 bytes .* but only"),
        (coded(np.ones((99, 99, 3), np.uint8))[:-90], (99, 99, 3), "is broken"),
        (coded(np.zeros((8, 8, 3), np.uint8), "BMP"), (8, 8, 3), "is broken"),
        (b"", (8, 8, 3), "is broken"),
    ],
)
def test_pictures_that_lie(data, shape, message):
    with pytest.raises(DataError, match=f"file: camera: {message}"):
        decode_image(Path("file"), "camera", data, shape)
