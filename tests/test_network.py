"""Properties of the networks; the folder conf/network lists the recipes."""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.errors import ConfigError
from src.network.conv_autoencoder import ConvDecoder, ConvEncoder
from src.network.layers import NORMS, UPSAMPLES, Attention, sinusoid
from src.network.mlp import MLP
from src.network.mlp_autoencoder import ACTIVATIONS, MLPDecoder, MLPEncoder
from src.network.unet import UNet

RECIPES = sorted(Path(__file__).parents[1].joinpath("conf/network").glob("*.yaml"))
SHAPE = (1, 8, 8)


def small_unet(shape=SHAPE, **settings):
    return UNet(
        shape,
        **{"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
        | settings,
    )


def perturb(network):
    """Moves every parameter a little: zero-initialised layers hide what is behind them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network


def images(shape=SHAPE, num=2, **kwargs):
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(0), **kwargs)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def assert_gradient_everywhere(network, *inputs):
    output = network(*inputs)
    (output * torch.randn_like(output)).sum().backward()
    dead = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert not dead


def recipe(path, shape):
    config = {
        "dataset": {"image_shape": list(shape)},
        "model": {"latent_dim": 3},
        "network": OmegaConf.load(path),
    }
    with torch.device("meta"):
        return instantiate(OmegaConf.create(config).network, _convert_="all")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 64, 64)])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_map_images_to_images(path, shape):
    network, x = recipe(path, shape), torch.empty(2, *shape, device="meta")
    if isinstance(network, dict):
        features = network["encoder"](x)
        assert features.shape == (2, network["encoder"].num_features)
        assert network["decoder"](torch.empty(2, 3, device="meta")).shape == x.shape
    else:
        assert network(x, torch.ones(2, dtype=torch.long, device="meta")).shape == x.shape


def test_unet_has_the_size_of_ho_et_al():
    with torch.device("meta"):
        assert count(UNet((3, 32, 32))) == 35_746_307


def test_unet_small_is_small():
    assert (
        count(recipe(next(path for path in RECIPES if path.stem == "unet_small"), SHAPE)) < 0.75e6
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 4, 12), (2, 2, 2)])
@pytest.mark.parametrize(
    "network", [small_unet, lambda shape: MLP(shape, 16, 2)], ids=["unet", "mlp"]
)
def test_denoisers_keep_the_shape_and_start_at_zero(network, shape):
    output = network(shape)(images(shape), torch.tensor([1, 1000]))
    assert output.shape == (2, *shape)
    assert (output == 0).all()


@pytest.mark.parametrize(
    "settings", [{"channel_mult": (2, 1, 3), "num_blocks": 2}, {"channels": 7}, {"num_heads": 4}]
)
def test_unet_widths_fit_together(settings):
    assert small_unet(**settings)(images(), torch.ones(2)).shape == (2, *SHAPE)


@pytest.mark.parametrize(
    "network",
    [small_unet(), small_unet(norm="layer", upsample="transposed", num_heads=2), MLP(SHAPE, 16, 2)],
    ids=["unet", "unet_layer", "mlp"],
)
def test_gradient_reaches_every_parameter_of_denoisers(network):
    assert_gradient_everywhere(perturb(network), images(), torch.tensor([3, 700]))


@pytest.mark.parametrize("pair", ["conv", "mlp"])
def test_gradient_reaches_every_parameter_of_autoencoders(pair):
    encoder, decoder = (
        (ConvEncoder(SHAPE, 8), ConvDecoder(3, SHAPE, 8))
        if pair == "conv"
        else (MLPEncoder(SHAPE), MLPDecoder(3, SHAPE))
    )
    assert_gradient_everywhere(perturb(encoder), images())
    assert_gradient_everywhere(perturb(decoder), torch.randn(2, 3))


@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_and_upsampling_sees_image_and_time(norm, upsample):
    network = perturb(small_unet(norm=norm, upsample=upsample)).eval()
    x, t = images(), torch.tensor([10, 10])
    output = network(x, t)
    assert output.shape == x.shape
    assert not torch.allclose(output, network(x, t + 500), atol=1e-3)
    assert not torch.allclose(output[0], output[1], atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_time_reaches_the_first_block(norm):
    block = perturb(small_unet(channels=32, norm=norm)).eval().down[0][0]
    x, time = torch.randn(1, 32, 8, 8), torch.randn(2, 1, 128)
    assert not torch.allclose(block(x, time[0]), block(x, time[1]), atol=1e-3)


def test_sinusoid_has_its_closed_form():
    embedding = sinusoid(torch.tensor([0, 7]), 8)
    frequencies = [10_000 ** (-i / 3) for i in range(4)]
    expected = [math.sin(7 * w) for w in frequencies] + [math.cos(7 * w) for w in frequencies]
    torch.testing.assert_close(embedding, torch.tensor([[0.0] * 4 + [1.0] * 4, expected]))
    assert sinusoid(torch.tensor([1.5]), 5).shape == (1, 5)


def test_sinusoid_distinguishes_all_times():
    embedding = sinusoid(torch.arange(1001), 32)
    distance = torch.cdist(embedding, embedding).fill_diagonal_(1.0)
    assert distance.min() > 1e-2


def test_attention_is_softmax_over_pixels():
    attention = perturb(Attention(8, num_heads=2)).double()
    x = images((8, 3, 5), dtype=torch.float64)
    query, key, value = (
        attention.qkv(attention.norm(x)).flatten(2).unflatten(1, (3, 2, 4)).unbind(1)
    )
    weights = torch.einsum("bhcq,bhck->bhqk", query, key).div(math.sqrt(4)).softmax(-1)
    mixed = torch.einsum("bhqk,bhck->bhcq", weights, value).reshape(x.shape)
    torch.testing.assert_close(attention(x), x + attention.output(mixed))


@pytest.mark.parametrize(
    "make", [small_unet, lambda **settings: MLP(SHAPE, 16, 2, **settings)], ids=["unet", "mlp"]
)
def test_dropout_acts_in_training_only(make):
    network, x, t = perturb(make(dropout=0.5)), images(), torch.ones(2)
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize("norm", ["group", "instance", "layer"])
def test_images_of_a_batch_are_independent(norm):
    network, x, t = (
        perturb(small_unet(norm=norm)).double(),
        images(num=3, dtype=torch.float64),
        torch.tensor([1, 5, 900]),
    )
    torch.testing.assert_close(network(x, t)[1:2], network(x[1:2], t[1:2]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", [small_unet(), MLP(SHAPE, 16, 2)], ids=["unet", "mlp"])
def test_precisions_agree(network):
    perturb(network)
    x, t = images(), torch.tensor([3, 700])
    single = network(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, t)
    double = network.double()(x.double(), t)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mixed.double(), double, rtol=0.1, atol=0.1)


def test_integer_and_float_times_agree():
    network = perturb(small_unet())
    assert torch.equal(
        network(images(), torch.tensor([3, 700])), network(images(), torch.tensor([3.0, 700.0]))
    )


@pytest.mark.parametrize("channel_mult", [(1,), (1, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 33, 27), (1, 28, 28), (3, 5, 64), (1, 1, 1)], ids=str
)
def test_conv_autoencoder_handles_any_size(shape, channel_mult):
    encoder, decoder = (
        ConvEncoder(shape, 4, channel_mult),
        ConvDecoder(3, shape, 4, channel_mult, upsample="transposed"),
    )
    assert encoder(images(shape)).shape == (2, encoder.num_features)
    assert decoder(torch.randn(2, 3)).shape == (2, *shape)


@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("norm", NORMS)
def test_conv_autoencoder_options(norm, upsample):
    decoder = ConvDecoder(2, (1, 7, 9), 8, (1, 2), 2, norm, upsample).double()
    assert decoder(torch.randn(2, 2, dtype=torch.float64)).shape == (2, 1, 7, 9)
    assert ConvEncoder((1, 7, 9), 8, (1, 2), 2, norm)(images((1, 7, 9))).ndim == 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_autoencoder(activation):
    encoder = MLPEncoder((1, 28, 28), (200, 200), activation)
    decoder = MLPDecoder(50, (1, 28, 28), (200, 200), activation)
    assert encoder(images((1, 28, 28))).shape == (2, encoder.num_features) == (2, 200)
    assert decoder(torch.randn(2, 50)).shape == (2, 1, 28, 28)
    assert count(encoder) == 784 * 200 + 200 + 200 * 200 + 200


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 30, 30),
            r"shape=\(3, 30, 30\): image size 30x30 is not divisible by 8 \(3 down-samplings\): "
            "use 24x24 or 32x32",
        ),
        ((1, 32, 20), "use 32x16 or 32x24, or fewer channel_mult levels"),
        ((1, 6, 6), "use 8x8, or fewer"),
    ],
)
def test_refused_sizes_name_those_that_would_do(shape, message):
    with pytest.raises(ConfigError, match=message):
        UNet(shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: small_unet(norm="none"),
            "norm=none: must be one of group, batch, instance, layer",
        ),
        (
            lambda: small_unet(upsample="area"),
            "upsample=area: must be one of nearest, bilinear, bicubic, transposed",
        ),
        (lambda: small_unet(upsample="area", channel_mult=(1,)), "upsample=area: "),
        (lambda: small_unet(channels=0), "channels=0: "),
        (lambda: small_unet(channels=1), "channels=1: must be at least 2"),
        (lambda: small_unet(channel_mult=()), r"channel_mult=\[\]: "),
        (lambda: small_unet(num_blocks=0), "num_blocks=0: "),
        (lambda: small_unet(dropout=1.0), "dropout=1.0: "),
        (lambda: small_unet(num_heads=3), "num_heads=3: must divide the 16 channels"),
        (lambda: small_unet(num_heads=0), "num_heads=0: "),
        (lambda: small_unet(shape=(8, 8)), r"shape=\(8, 8\): must be \(channels, height, width\)"),
        (lambda: small_unet(shape=(1, 2, 2), norm="instance"), "norm=instance: would erase"),
        (lambda: MLP(SHAPE, hidden=1), "hidden=1: "),
        (lambda: MLP(SHAPE, num_layers=0), "num_layers=0: "),
        (lambda: MLP(SHAPE, dropout=-0.1), "dropout=-0.1: "),
        (lambda: ConvEncoder(SHAPE, norm="none"), "norm=none: "),
        (lambda: ConvEncoder((1, 0, 8)), r"shape=\(1, 0, 8\): "),
        (lambda: ConvDecoder(0, SHAPE), "latent_dim=0: must be an integer >= 1"),
        (lambda: ConvDecoder(2, SHAPE, upsample="area"), "upsample=area: "),
        (lambda: MLPEncoder(SHAPE, hidden=()), r"hidden=\[\]: must be one or more widths"),
        (lambda: MLPEncoder(SHAPE, hidden=(8, 0)), r"hidden=\[8, 0\]: "),
        (
            lambda: MLPEncoder(SHAPE, activation="gelu"),
            "activation=gelu: must be one of silu, tanh, relu",
        ),
        (lambda: MLPDecoder(0, SHAPE), "latent_dim=0: "),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
