"""Files of weights: whole or not at all, and never believed when damaged."""

import logging
import os
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import vggnet as vgg
from safetensors.numpy import load_file, save_file
from vggnet import checkpoint
from vggnet.checkpoint import Checkpoints, read_tensors, restore_tensors, verify_tensors, write_tensors

METADATA = {"format": "test", "note": "ä\n"}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "b": rng.standard_normal(5, np.float32),
        "a": rng.standard_normal((2, 3), np.float32),
        "scalar": np.float32(3.0).reshape(()),
        "empty": np.empty((0, 4), np.int64),
    }


def test_round_trip_and_equal_contents_make_equal_files(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    original = arrays()
    write_tensors(first, original, METADATA)
    write_tensors(second, dict(reversed(original.items())), dict(reversed(METADATA.items())))
    assert first.read_bytes() == second.read_bytes()
    back, metadata = read_tensors(first)
    assert list(back) == sorted(original)
    for name, array in original.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    assert {**METADATA, "sha256": metadata["sha256"]} == metadata
    assert verify_tensors(first) == metadata
    np.testing.assert_array_equal(
        load_file(first)["a"], original["a"]
    )  # any reader of safetensors can read it


def test_permissions_are_those_of_a_plain_new_file_or_of_the_replaced_one(tmp_path):
    (tmp_path / "plain").touch()
    path = tmp_path / "weights"
    write_tensors(path, arrays(), {})
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    write_tensors(path, arrays(), {})
    assert path.stat().st_mode & 0o777 == 0o640


def test_files_of_other_programs_have_no_checksum(tmp_path):
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "x", {"origin": "elsewhere"})
    back, metadata = read_tensors(tmp_path / "x")
    np.testing.assert_array_equal(back["x"], 1)
    assert metadata == {"origin": "elsewhere"}


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path):
    path, damaged = tmp_path / "good", tmp_path / "damaged"
    write_tensors(path, {"x": np.arange(3, dtype=np.float32)}, {"format": "test"})
    content = path.read_bytes()
    for end in range(len(content)):
        damaged.write_bytes(content[:end])
        with pytest.raises(vgg.WeightsError, match="damaged"):
            read_tensors(damaged)
    for i in range(len(content)):
        flipped = bytearray(content)
        flipped[i] ^= 1
        damaged.write_bytes(flipped)
        try:
            _, metadata = read_tensors(damaged)
        except vgg.WeightsError:
            continue
        assert (
            "format" not in metadata
        )  # the flip hit the name of our metadata: it passes for another program's file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"", "cut short"),
        (b"PK\3\4" + bytes(100), "not a readable safetensors file"),
    ],
)
def test_what_is_not_a_file_of_weights_is_named(tmp_path, content, message):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(vgg.WeightsError, match=message) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_directories_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*missing"):
        read_tensors(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"no such directory: .*missing"):
        write_tensors(tmp_path / "missing" / "x", arrays(), {})


def test_types_that_numpy_lacks_are_named(tmp_path):
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(vgg.WeightsError, match="x has type BF16"):
        read_tensors(tmp_path / "x")


@pytest.mark.parametrize("step", ["save_file", "_sync", "os.replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "weights"
    write_tensors(path, arrays(), METADATA)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    owner, name = (os, "replace") if step == "os.replace" else (checkpoint, step)
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, arrays(1), METADATA)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["weights"]


def test_writing_copies_nothing_and_verifying_holds_one_array_at_a_time(tmp_path):
    size = 1 << 22
    big = {f"x{i}": np.zeros(size // 4, np.float32) for i in range(6)}
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "big", big, {})
        assert tracemalloc.get_traced_memory()[1] < size // 4
        tracemalloc.reset_peak()
        verify_tensors(tmp_path / "big")
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()


# ---- the checkpoints of a run


def tensors(value):
    return {name: vgg.tensor(np.full((2, 3), value, np.float32)) for name in ("a.weight", "a.bias")}


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    (tmp_path / ".checkpoint-0000000001.safetensors.x.tmp").mkdir()  # of a killed process
    for iteration in (9, 10, 200):
        checkpoints.save(iteration, tensors(iteration), tensors(-iteration), {"note": str(iteration)})
    assert [path.name for path in checkpoints.paths()] == [
        "checkpoint-0000000200.safetensors",
        "checkpoint-0000000010.safetensors",
    ]
    assert len(os.listdir(tmp_path)) == 2
    path, metadata = checkpoints.newest()
    assert metadata["note"] == "200"
    back = tensors(0)
    velocities = {f"velocity/{name}": tensor for name, tensor in tensors(0).items()}
    restore_tensors(path, {**back, **velocities})
    assert all((tensor.numpy() == 200).all() for tensor in back.values())
    assert all((tensor.numpy() == -200).all() for tensor in velocities.values())


def test_damaged_checkpoints_are_set_aside(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for iteration in (1, 2, 3):
        checkpoints.save(iteration, tensors(iteration), tensors(0), {"note": str(iteration)})
    newest, second, _ = checkpoints.paths()
    newest.write_bytes(newest.read_bytes()[:-5])
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    with caplog.at_level(logging.WARNING, "vggnet"):
        path, metadata = checkpoints.newest()
    assert metadata["note"] == "1"
    assert newest.name in caplog.text
    assert second.name in caplog.text
    assert checkpoints.paths() == [path]
    assert newest.with_name(newest.name + ".damaged").exists()
    path.write_bytes(b"")
    with pytest.raises(vgg.WeightsError, match="every checkpoint is damaged"):
        checkpoints.newest()


@pytest.mark.parametrize("part_bytes", [1, 12, 40, 1 << 20])
def test_tensors_are_restored_in_parts(tmp_path, monkeypatch, part_bytes):
    """Whatever does not divide: rows of a part, a part of a row, no rows at all."""
    monkeypatch.setattr("vggnet.checkpoint.COPY_BYTES", part_bytes)
    shapes = {"a": (7, 3), "b": (5,), "c": (2, 2, 3), "d": (0, 3)}
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    write_tensors(tmp_path / "x", arrays, {})
    tensors = {name: vgg.empty(array.shape) for name, array in arrays.items()}
    restore_tensors(tmp_path / "x", tensors)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].numpy(), array)
    halves = {name: vgg.empty(array.shape, "bfloat16") for name, array in arrays.items()}
    restore_tensors(tmp_path / "x", halves)
    for name, array in arrays.items():
        expected = vgg.tensor(array, dtype="bfloat16").to(dtype="float32").numpy()
        np.testing.assert_array_equal(halves[name].to(dtype="float32").numpy(), expected)


def test_restoring_into_another_network_changes_nothing(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, {"a": np.ones(3, np.float32), "b": np.ones(4, np.float32)}, {})
    a, b = vgg.zeros(3), vgg.zeros(5)
    with pytest.raises(vgg.WeightsError, match=r"b has shape \(4,\); expected \(5,\)"):
        restore_tensors(path, {"a": a, "b": b})
    with pytest.raises(vgg.WeightsError, match="the model has no b"):
        restore_tensors(path, {"a": a})
    with pytest.raises(vgg.WeightsError, match="the file has no c"):
        restore_tensors(path, {"a": a, "b": vgg.zeros(4), "c": vgg.zeros(1)})
    assert (a.numpy() == 0).all()


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


KILLED = """
import os, signal, sys
import numpy as np, vggnet as vgg
from vggnet import checkpoint
checkpoints = checkpoint.Checkpoints(sys.argv[1])
weights = {"a": vgg.tensor(np.full(1000, 1.0, np.float32))}
checkpoints.save(1, weights, weights, {"note": "1"})
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def cut(arrays, path, metadata):
    path.with_name('.tmpXYZ').write_bytes(b'what safetensors writes')
    open(path, "wb").write(b"half a file")
    kill()
module, name, call = {"write": (checkpoint, "save_file", cut), "flush": (checkpoint, "_sync", kill),
                      "rename": (os, "replace", kill),
                      "prune": (checkpoint.Path, "unlink", kill)}[sys.argv[2]]
setattr(module, name, call)
for iteration in (2, 3):
    checkpoints.save(iteration, weights, weights, {"note": str(iteration)})
"""


@pytest.mark.parametrize("step", ["write", "flush", "rename", "prune"])
def test_a_killed_process_leaves_an_intact_checkpoint(tmp_path, step):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), step], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    checkpoints = Checkpoints(tmp_path)
    _path, metadata = checkpoints.newest()
    assert metadata["note"] == ("3" if step == "prune" else "1")
    checkpoints.save(4, tensors(4), tensors(4), {})  # and the next process clears up
    assert len(os.listdir(tmp_path)) == 2
