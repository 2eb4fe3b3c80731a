"""The observation of `bench` and `infer`: files, images, shapes and values, placed as the model names its entries."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client.cli.image_file import ImageUnreadable, read_image
from shmserve.client.cli.observation import ObservationInvalid, ObservationSource, shape_of
from shmserve.client.cli.synthetic_observation import NotKnown
from shmserve.contract import describe_tree
from shmserve.npz_file import NpzUnreadable, read_npz, write_npz

FRAME = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
TREE: dict[str, Any] = {
    "state": np.zeros(2, np.float32),
    "camera": {"front": np.zeros((2, 3, 3), np.uint8)},
    "observation.image": np.zeros((2, 3, 3), np.uint8),
    "ranges": [0.0, 0.0],
    "task": "",
}


def model(tree: Any = TREE, **description: Any) -> dict[str, Any]:
    entries = None if tree is None else describe_tree(tree)
    return {"observation": entries, "observation_source": "example", "contract": {}, **description}


def made(described: dict[str, Any], **options: Any) -> Any:
    return ObservationSource(**options).make(described)[0]


def ppm(path: Path, pixels: Any = FRAME) -> Path:
    height, width, channels = pixels.shape
    path.write_bytes(
        b"P%d\n# made by a test\n%d %d\n255\n" % (6 if channels == 3 else 5, width, height) + pixels.tobytes()
    )
    return path


def png(path: Path) -> Path:
    """FRAME, written without a library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in FRAME)
    head = struct.pack(">IIBBBBB", 3, 2, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def test_without_options_it_is_zeros_as_the_model_describes_them() -> None:
    tree, origin = ObservationSource().make(model())

    assert describe_tree(tree) == describe_tree(TREE)
    assert origin == "zeros in the shape of the model's example"
    assert ObservationSource().make(model(observation_source="first request"))[1].endswith("of the first request")


def test_a_free_dimension_has_the_example_s_length() -> None:
    entries = {
        "points": {"dtype": "float32", "shape": [-1, 3], "example_shape": [5, 3]},
        "ranges": {"type": "list[float]", "length": -1, "example_length": 4},
    }

    tree = made(model(None, observation=entries))

    assert tree["points"].shape == (5, 3) and tree["ranges"] == [0.0] * 4


def test_a_model_that_describes_nothing_needs_an_option() -> None:
    with pytest.raises(NotKnown, match="--shape NAME:480x640x3:uint8"):
        made(model(None))

    tree = made(model(None), shapes=("observation.image:4x6x3:uint8", "state:6:float32"), values=("task=fold",))

    assert describe_tree(tree) == describe_tree(
        {"observation": {"image": np.zeros((4, 6, 3), np.uint8)}, "state": np.zeros(6, np.float32), "task": "fold"}
    )


def test_single_entries_are_placed_by_their_names_in_the_contract(tmp_path: Path) -> None:
    np.save(tmp_path / "frame.npy", FRAME)

    tree = made(
        model(),
        shapes=("state:9:float64",),
        images=(f"camera.front={ppm(tmp_path / 'frame.ppm')}", f"observation.image={tmp_path / 'frame.npy'}"),
        values=("task=fold = press", "ranges=[1, 2]"),
    )

    assert tree["state"].shape == (9,) and tree["task"] == "fold = press" and tree["ranges"] == [1, 2]
    np.testing.assert_equal(tree["camera"]["front"], FRAME)
    np.testing.assert_equal(tree["observation.image"], FRAME)
    assert made(model(), values=("state=[1, 2]",))["state"].dtype == np.float32


def test_entries_of_an_npz_are_keys_unless_the_model_nests_them(tmp_path: Path) -> None:
    arrays = {"camera.front": FRAME, "observation.image": FRAME, "un.known": np.zeros(1), "task": "fold"}
    write_npz(tmp_path / "seen.npz", arrays)

    tree = made(model(), example=str(tmp_path / "seen.npz"))

    assert list(tree) == ["camera", "observation.image", "un.known", "task"]
    assert list(tree["camera"]) == ["front"] and tree["task"] == "fold"
    assert list(made(model(None), example=str(tmp_path / "seen.npz"))) == [*arrays]


def test_numbers_of_a_json_get_the_dtypes_that_the_model_declares(tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_text(
        json.dumps({"state": [1, 2], "camera": {"front": FRAME.tolist()}, "ranges": [0.5], "task": "fold", "more": 1})
    )

    tree = made(model(), example=str(tmp_path / "seen.json"))

    assert tree["state"].dtype == np.float32 and tree["ranges"] == [0.5] and tree["more"] == 1
    np.testing.assert_equal(tree["camera"]["front"], FRAME)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "seen.json is not JSON"),
        ('{"pose": [[1, 2]]}', "pose[0] is a list within a list"),
        ('{"state": ["a"]}', "state cannot become float32"),
        ('{"camera": {"front": [[1], [1, 2]]}}', "camera.front cannot become uint8"),
    ],
)
def test_a_json_that_cannot_be_sent_is_refused_naming_the_entry(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "seen.json").write_text(content)

    with pytest.raises(ObservationInvalid) as caught:
        made(model(), example=str(tmp_path / "seen.json"))
    assert words in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    for name, error in (("a.json", ObservationInvalid), ("a.npz", NpzUnreadable)):
        with pytest.raises(error, match=f"{name} cannot be read: No such file or directory"):
            made(model(), example=str(tmp_path / name))
    with pytest.raises(ImageUnreadable, match=r"a\.png cannot be read: No such file or directory"):
        made(model(), images=(f"camera.front={tmp_path / 'a.png'}",))


def test_an_entry_without_a_place_is_named() -> None:
    with pytest.raises(ObservationInvalid, match=r"task\.more: the observation has no place for it"):
        made(model(), values=("task.more=1",))


@pytest.mark.parametrize(
    "given", ["image", "image:4:", ":4:uint8", "image:4x:uint8", "image:-1:uint8", "a:4:U3", "a:4:object"]
)
def test_a_shape_that_cannot_be_read_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="image:480x640x3:uint8"):
        shape_of(given)


def test_an_npz_keeps_every_name_and_value(tmp_path: Path) -> None:
    values = {"file": np.arange(3), "arm.left": np.float32(1), "task": "fold", "count": 3, "flags": [True]}
    write_npz(tmp_path / "out", values)

    found = read_npz(tmp_path / "out")

    assert list(found) == [*values]
    assert (found["task"], found["count"]) == ("fold", 3)
    np.testing.assert_equal(found["file"], values["file"])


def test_colours_are_in_the_order_that_the_model_states(tmp_path: Path) -> None:
    entry = {"contract": {"meaning": {"observation": {"camera.front": {"colour_order": "bgr"}}}}}

    tree = made(model(**entry), images=(f"camera.front={ppm(tmp_path / 'frame.ppm')}",))

    np.testing.assert_equal(tree["camera"]["front"], FRAME[..., ::-1])


def test_a_grey_frame_has_one_channel(tmp_path: Path) -> None:
    grey = np.ascontiguousarray(FRAME[..., :1])

    np.testing.assert_equal(read_image(ppm(tmp_path / "grey.pgm", grey), channels=1), grey)


def test_a_frame_that_is_cut_off_or_no_image_is_refused(tmp_path: Path) -> None:
    whole = ppm(tmp_path / "frame.ppm").read_bytes()
    for name, content, words in (
        ("cut.ppm", whole[:-1], "is cut off: 3 x 2 pixels"),
        ("text.png", b"not an image", "Pillow"),
        ("cut.npy", b"\x93NUMPY\x01", "numpy.save"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageUnreadable, match=words):
            read_image(tmp_path / name)


def test_other_formats_are_decoded_by_pillow(tmp_path: Path) -> None:
    pytest.importorskip("PIL")

    np.testing.assert_equal(read_image(png(tmp_path / "frame.png")), FRAME)
    assert read_image(png(tmp_path / "frame.png"), channels=1).shape == (2, 3, 1)


def test_without_pillow_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)

    with pytest.raises(ImageUnreadable, match=r"frame\.png needs Pillow to be decoded: pip install pillow"):
        read_image(png(tmp_path / "frame.png"))
    np.testing.assert_equal(read_image(ppm(tmp_path / "frame.ppm")), FRAME)
