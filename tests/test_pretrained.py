"""Pretrained networks: files are checked before they are opened; the networks are as published."""

import hashlib
import io
import math
from urllib.error import URLError

import numpy as np
import PIL.Image
import pytest
import torch
from hydra.errors import InstantiationException
from support import build
from torch import nn
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, VisionTransformer
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from src.errors import CheckpointError, ConfigError, DataError
from src.features import clip, dinov2, inception
from src.features.base import CanClassify, HasAccuracy
from src.features.clip import CLIP
from src.features.dinov2 import DINOv2
from src.features.inception import Inception
from src.features.pretrained import Published, resize
from src.noise import generator

KINDS = {"inception": Inception, "dinov2": DINOv2, "clip": CLIP}
every_kind = pytest.mark.parametrize("kind", KINDS)


def random_images(num, channels=3, size=8, key="images"):
    return torch.randint(
        0, 256, (num, channels, size, size), generator=generator(key), dtype=torch.uint8
    )


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def published(kind):
    """The file that the defaults of an option ask for."""
    known = {"inception": inception.PUBLISHED, "dinov2": dinov2.VARIANTS["vit-l-14"].published}
    return known.get(kind) or clip._published("vit-b-32")


def refusal(kind, error, **settings):
    """Why an option cannot be built."""
    with pytest.raises(InstantiationException) as caught:
        build("features", kind, **settings)
    assert type(caught.value.__cause__) is error
    text = str(caught.value.__cause__)
    assert "\n" not in text
    return text


@pytest.fixture(scope="module", autouse=True)
def small_variants():
    """The default variants with other widths: the published ones have up to 304 million weights."""
    with pytest.MonkeyPatch.context() as patch:
        large = dinov2.VARIANTS["vit-l-14"]
        patch.setitem(dinov2.VARIANTS, "vit-l-14", large._replace(width=32, depth=2, heads=4))
        patch.setitem(clip.VARIANTS, "vit-b-32", clip.Variant(32, 16, 64, 2, 1, 5))
        yield {"dinov2": large, "clip": clip.Variant(224, 32, 768, 12, 12, 512)}


class Untrained(FeatureExtractorInceptionV3):
    """The structure with random initial weights: the published ones are not at hand."""

    def load_state_dict(self, *_):
        return None


class Whole(nn.Module):
    """What OpenAI's archives hold: a text encoder beside the image encoder."""

    def __init__(self):
        super().__init__()
        self.visual = VisionTransformer(*clip.VARIANTS["vit-b-32"])
        self.text_projection = nn.Parameter(torch.ones(4, 5))

    def forward(self, x):
        return x


def randomised(network, std=0.2):
    for name, parameter in network.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        noise = torch.randn(parameter.shape, generator=generator(name))
        parameter.data = centre + std * noise
    return network


def untrained_inception():
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return Untrained("random", ["2048"], feature_extractor_weights_path=empty)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file with the random weights of each network."""
    folder = tmp_path_factory.mktemp("weights")
    width, depth, heads, *_ = dinov2.VARIANTS["vit-l-14"]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        networks = {
            "inception": untrained_inception(),
            "dinov2": randomised(dinov2._VisionTransformer(width, depth, heads)),
            "clip": randomised(Whole()).half(),
        }
    paths = {kind: folder / f"{kind} = random.pth" for kind in KINDS}
    for kind, network in networks.items():
        torch.save(network.state_dict(), paths[kind])
    return paths


# ---- files


@every_kind
def test_features_from_a_file(kind, files):
    before = torch.random.get_rng_state()
    features = KINDS[kind](files[kind], sha256=None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert features.name == kind
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert {parameter.dtype for parameter in features.parameters()} == {torch.float32}
    grey = random_images(3, channels=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = features(grey)
    assert result.shape == (3, features.num_features)
    assert result.dtype == torch.float32
    assert torch.equal(result, features(grey.repeat(1, 3, 1, 1)))
    assert not torch.equal(result[0], result[1])
    torch.testing.assert_close(result[1:2], features(grey[1:2]), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match=f"features={kind} takes images with 1 or 3 channels, these have 2"
    ):
        features(random_images(2, channels=2))


@every_kind
def test_another_file_is_refused_before_it_is_opened(kind, files, tmp_path, monkeypatch):
    file = tmp_path / "other.pth"
    file.write_bytes(b"anything")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
        text = refusal(kind, CheckpointError, weights=str(file))
        with pytest.raises(
            CheckpointError, match=f"SHA-256 is {sha256(files[kind])}, expected {'0' * 64}"
        ):
            KINDS[kind](files[kind], sha256="0" * 64)
    for part in (
        str(file),
        sha256(file),
        published(kind).sha256,
        "features.sha256=null accepts any file",
    ):
        assert part in text
    assert (
        KINDS[kind](files[kind], sha256=sha256(files[kind])).key
        == KINDS[kind](files[kind], sha256=None).key
    )


def test_keys_tell_files_apart(files, tmp_path):
    state = torch.load(files["dinov2"], weights_only=True)
    torch.save(state | {"cls_token": state["cls_token"] + 1}, tmp_path / "other.pth")
    keys = {KINDS[kind](files[kind], sha256=None).key for kind in KINDS}
    assert len(keys | {DINOv2(tmp_path / "other.pth", sha256=None).key}) == 4


@pytest.mark.parametrize("name", inception.PUBLISHED.names)
def test_the_hub_cache_is_used_and_checked(name, files, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded")
    )
    monkeypatch.setattr(inception, "_build", lambda _: nn.Identity())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).symlink_to(files["inception"])
    with pytest.raises(
        CheckpointError, match="expected 6726825d.*: delete the file if it is damaged"
    ):
        Inception()
    assert Inception(sha256=None).key == Inception(files["inception"], sha256=None).key


def test_a_download_is_checked(files, tmp_path, monkeypatch):
    def download(url, path, hash_prefix, progress):
        assert (url, hash_prefix) == (published("dinov2").url, published("dinov2").sha256)
        with open(path, "wb") as target:
            target.write(files["dinov2"].read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(
        CheckpointError, match=r"dinov2_vitl14_pretrain.pth: its SHA-256 is .* expected d5383ea8"
    ):
        DINOv2()


@every_kind
def test_offline_names_both_ways_out(kind, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    missing = str(tmp_path / "missing.pth")
    for weights, reason in ((None, "not known"), (missing, "missing.pth: cannot be read (No such")):
        text = refusal(kind, DataError, weights=weights)
        for part in (
            f"features.weights=PATH to the file {published(kind).names[0]}",
            published(kind).url,
            reason,
        ):
            assert part in text


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("code from a weight file was run",))


@every_kind
@pytest.mark.parametrize("content", [[1, 2], {"weight": torch.zeros(2)}, b"text", Payload()])
def test_other_files_are_refused(kind, content, tmp_path):
    file = tmp_path / "other.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(
        CheckpointError, match="cannot be read as weights of this network"
    ) as caught:
        KINDS[kind](file, sha256=None)
    assert "\n" not in str(caught.value)


def test_wrong_settings(files):
    for make in (DINOv2, CLIP):
        with pytest.raises(ConfigError, match="variant=vit-x: must be one of vit-"):
            make(files["clip"], variant="vit-x")
    for digest in ("6726825d", "A" * 64, 5):
        with pytest.raises(
            ConfigError, match=f"sha256={digest}: must be published, 64 hexadecimal digits"
        ):
            Inception(files["inception"], sha256=digest)


# ---- networks


def test_inception_classes_are_those_of_the_inception_score(files):
    features, images = Inception(files["inception"], sha256=None), random_images(3)
    oracle = FeatureExtractorInceptionV3(
        "oracle", ["2048", "logits_unbiased"], str(files["inception"])
    )
    pool, logits = oracle(images)
    torch.testing.assert_close(features(images), pool, rtol=1e-5, atol=1e-6)
    probabilities = features.probabilities_of(features(images))
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-5, atol=0)
    assert isinstance(features, CanClassify)
    assert not isinstance(features, HasAccuracy)  # its classes are not those of the data


@pytest.mark.parametrize(
    ("side", "size"), [(8, 224), (28, 224), (224, 224), (300, 224), (300, 336)]
)
def test_resizing_is_that_of_pil(side, size):
    images = random_images(2, size=side)
    result = resize(images, size)
    pictures = [PIL.Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = np.stack(
        [np.asarray(picture.resize((size, size), PIL.Image.BICUBIC)) for picture in pictures]
    )
    difference = (result - torch.from_numpy(expected).permute(0, 3, 1, 2)).abs()
    assert float(difference.max()) <= 2
    assert float((difference > 0).float().mean()) < 0.01


def test_a_dinov2_block_is_torchs_encoder_layer():
    block = randomised(dinov2._Block(32, heads=4))
    layer = nn.TransformerEncoderLayer(
        32, 4, 128, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    state, first, second = block.state_dict(), block.ls1["gamma"].data, block.ls2["gamma"].data
    renamed = {
        "self_attn.in_proj_": (state, "attn.qkv.", 1),
        # LayerScale is a factor of the last linear layer
        "self_attn.out_proj.": (state, "attn.proj.", first),
        "linear1.": (state, "mlp.fc1.", 1),
        "linear2.": (state, "mlp.fc2.", second),
        "norm1.": (state, "norm1.", 1),
        "norm2.": (state, "norm2.", 1),
    }
    for target, (source, name, gamma) in renamed.items():
        bias, weight = source[f"{name}bias"], source[f"{name}weight"]
        layer.state_dict()[f"{target}bias"].copy_(bias * gamma)
        layer.state_dict()[f"{target}weight"].copy_(
            weight * (gamma[:, None] if torch.is_tensor(gamma) else 1)
        )
    x = torch.randn(2, 7, 32, generator=generator("tokens"))
    torch.testing.assert_close(block(x), layer(x), rtol=1e-4, atol=1e-5)


def cubic(places, num):
    """Weights (len(places), num) of a cubic convolution (Keys 1981, a = -0.75).

    The border is repeated.
    """
    weights = torch.zeros(len(places), num)
    for row, place in enumerate(places):
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            t = abs(place - tap)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[row, min(max(tap, 0), num - 1)] += near if t <= 1 else far
    return weights


def test_dinov2_positions_are_read_at_the_published_places():
    network = randomised(dinov2._VisionTransformer(32, 1, 4), std=1)
    positions = network._positions(16)[0]
    assert positions.shape == (257, 32)
    assert torch.equal(positions[0], network.pos_embed[0, 0])
    # 16.1: the published offset
    filters = cubic([(j + 0.5) * 37 / 16.1 - 0.5 for j in range(16)], 37)
    expected = torch.einsum(
        "ab,cd,bdw->acw", filters, filters, network.pos_embed[0, 1:].unflatten(0, (37, 37))
    )
    torch.testing.assert_close(positions[1:], expected.flatten(0, 1), rtol=1e-3, atol=1e-4)


def test_clip_is_torch_fidelitys_where_nothing_is_resized(files, tmp_path, monkeypatch):
    whole = Whole()
    whole.load_state_dict(torch.load(files["clip"], weights_only=True))
    archive = tmp_path / "archive.pt"
    torch.jit.trace(whole.half(), torch.zeros(1)).save(archive)
    images = random_images(3, size=32)
    oracle = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], str(archive))(images)[0]
    assert float(oracle.std()) > 0.1
    torch.testing.assert_close(
        CLIP(files["clip"], sha256=None)(images), oracle, rtol=1e-4, atol=1e-5
    )
    for unpublished in (None, sha256(archive)):  # which a checkpoint may say as well
        with pytest.raises(
            CheckpointError, match="a TorchScript archive holds code: only the published one"
        ):
            CLIP(archive, sha256=unpublished)
    monkeypatch.setattr(clip, "_published", lambda variant: Published("", (), sha256(archive)))
    torch.testing.assert_close(CLIP(archive)(images), oracle, rtol=1e-4, atol=1e-5)


def test_networks_have_the_published_size(small_variants):
    """Sizes in millions: of DINOv2's weight files, of open_clip's table of image encoders."""

    def millions(network):
        return round(sum(math.prod(parameter.shape) for parameter in network.parameters()) / 1e6, 2)

    transformers = dinov2.VARIANTS | {"vit-l-14": small_variants["dinov2"]}
    encoders = clip.VARIANTS | {"vit-b-32": small_variants["clip"]}
    with torch.device("meta"):
        sizes = [
            millions(dinov2._VisionTransformer(*variant[:3])) for variant in transformers.values()
        ]
        assert sizes == [22.06, 86.58, 304.37]
        sizes = [millions(VisionTransformer(*variant)) for variant in encoders.values()]
        assert sizes == [87.85, 86.19, 303.97, 304.29]
