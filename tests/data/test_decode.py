"""The decoders give the same pixels, so the choice among them decides nothing but speed."""

import importlib.metadata
import io
import struct
import sys

import numpy as np
import pytest
import simplejpeg
import torch
import torchvision
from PIL import Image

from data_shards.format.manifest import Normalize
from data_shards.format.writer import Plan, split_writer
from rebias_dist.commands.train import parse_train
from rebias_dist.data import ShardDataset
from rebias_dist.data.decode import DecodeError, choose_decoder, decode, describe_decoder
from rebias_dist.data.shards import DamagedSample
from rebias_dist.errors import ConfigError
from tests.data_shards.images.zoo import photographs, whole, zoo

DECODERS = ("simplejpeg", "torchvision", "pillow")


def _kinds_of_jpeg():
    photo = Image.open(io.BytesIO(photographs()[0])).convert("RGB")
    for width, height in ((96, 64), (95, 61), (17, 8)):
        small = photo.resize((width, height))
        pixels = np.array(small)
        for sampling in ("444", "422", "420", "440", "411", "Gray"):
            yield sampling, simplejpeg.encode_jpeg(pixels, colorsubsampling=sampling)
        for options in ({"progressive": True}, {"keep_rgb": True}, {"quality": 1}):
            stream = io.BytesIO()
            small.save(stream, "JPEG", **options)
            yield str(options), stream.getvalue()


def test_all_decoders_give_the_same_pixels():
    compared = 0
    for name, content in [*whole().items(), *_kinds_of_jpeg()]:
        reference = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
        for decoder in DECODERS:
            pixels = decode(content, decoder)
            assert pixels.dtype == torch.uint8
            compared += 1
            # torchvision 0.24 (not 0.29) has a libjpeg-turbo that does not smooth 4:4:0 colours.
            if (name, decoder) == ("440", "torchvision") and torchvision.__version__ < "0.29":
                continue
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), reference), (name, decoder)
    assert compared == 3 * (len(whole()) + 27)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What conversion keeps though something is odd about it, as shards, with its name."""
    exhibits = [e for e in zoo() if e.verdict in ("ok", "suspect")]
    folder = tmp_path_factory.mktemp("kept")
    plan = Plan(
        dataset="toy", split="train", classes=("a",), options={},
        normalize=Normalize(mean=(0.5,) * 3, std=(0.5,) * 3), samples_per_shard=1000,
    )  # fmt: skip
    with split_writer(folder, plan) as writer:
        for number, exhibit in enumerate(exhibits):
            writer.write(f"k{number}", exhibit.content, 0, source=exhibit.name, size=(1, 1))
    return folder / "train", exhibits


def test_whatever_conversion_keeps_is_decoded_and_alike(kept):
    folder, exhibits = kept
    assert len(exhibits) > 40
    datasets = [ShardDataset(folder, decoder) for decoder in DECODERS]
    for i, exhibit in enumerate(exhibits):
        for verify in (True, False):
            images = [dataset.image(i, verify=verify) for dataset in datasets]
            assert images[0].shape[0] == 3
            for image in images[1:]:
                assert torch.equal(images[0], image), exhibit.name


def test_what_a_decoder_complains_of_has_its_hash_checked_after_all(kept, tmp_path):
    folder, exhibits = kept
    i = next(i for i, e in enumerate(exhibits) if e.name == "two-oddities.jpg")
    with pytest.raises(DecodeError):
        decode(exhibits[i].content, "simplejpeg")
    dataset = ShardDataset(folder, "simplejpeg")
    dataset._index = dataset._index.copy()
    dataset._index["hash"][i] = np.void(bytes(16))
    with pytest.raises(DamagedSample, match=f"train-000000.tar: sample k{i}: altered"):
        dataset.image(i, verify=False)


def test_conversions_do_not_depend_on_the_decoder():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 2**16, (5, 7), dtype=np.uint16)
    colour = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    cases = {
        "16 bits": (Image.fromarray(grey), "PNG", np.stack([grey >> 8] * 3, 2)),
        "alpha": (Image.fromarray(colour), "PNG", colour[..., :3]),
        "cmyk": (Image.new("CMYK", (7, 5), (0, 255, 0, 0)), "JPEG", [[[255, 0, 255]] * 7] * 5),
    }
    for name, (image, kind, expected) in cases.items():
        stream = io.BytesIO()
        image.save(stream, kind, **({"quality": 100} if kind == "JPEG" else {}))
        for decoder in DECODERS:
            found = decode(stream.getvalue(), decoder).permute(1, 2, 0).numpy()
            assert np.array_equal(found, expected), (name, decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_images_that_would_fill_the_memory_are_refused(decoder):
    content = bytearray(whole()["baseline.jpg"])
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 9000, 9000)
    with pytest.raises(DecodeError, match="9000 x 9000 pixels are more than 67,108,864"):
        decode(bytes(content), decoder)


def test_the_choice():
    assert choose_decoder("auto") == "simplejpeg"
    for decoder in DECODERS:
        assert choose_decoder(decoder) == decoder
        version = importlib.metadata.version(decoder)
        assert describe_decoder(decoder) == f"{decoder} {version}"


def test_a_decoder_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert choose_decoder("auto") == "torchvision"
    with pytest.raises(ConfigError, match=r"data.decoder: simplejpeg is not installed"):
        choose_decoder("simplejpeg")


def test_it_does_not_belong_to_what_a_run_is():
    plain, other = (
        parse_train(["--config", "biased_mnist/rebias", *flags]).config.identity()
        for flags in ([], ["--data.decoder", "pillow", "--data.verify", "0.5"])
    )
    assert plain == other
    skipping = parse_train(["--data.on_damaged", "skip", "--data.verify", "0.5"]).config
    assert skipping.identity()["data"]["verify"] == 0.5  # it decides what is skipped
