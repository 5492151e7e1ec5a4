"""The U-Net: the tensors of the published checkpoints, and one result for every way to compute it."""

import copy

import pytest
import torch
from torch.nn import functional

from poise.nn import Concatenate, FiLM, UNet1D, convolution
from poise.nn.convolution import Convolution
from poise.nn.unet1d import _Mish
from poise.testing import check_network

ACTION, TOKENS = 2, (2, 18)


def published_shapes(channels, kernel, embedding, action, observation, parts=2):
    """Names and shapes of the tensors in a published checkpoint, U-Net only, FiLM with scale and bias or one part."""
    shapes, condition = {}, embedding + observation

    def layer(name, *weight):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, (weight[0],)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def convolution(name, inputs, outputs):
        layer(f"{name}.block.0", outputs, inputs, kernel)
        norm(f"{name}.block.1", outputs)

    def residual(name, inputs, outputs):
        convolution(f"{name}.conv1", inputs, outputs)
        convolution(f"{name}.conv2", outputs, outputs)
        layer(f"{name}.cond_encoder.1", parts * outputs, condition)
        if inputs != outputs:
            layer(f"{name}.residual_conv", outputs, inputs, 1)

    layer("diffusion_step_encoder.1", 4 * embedding, embedding)
    layer("diffusion_step_encoder.3", embedding, 4 * embedding)
    for i, outputs in enumerate(channels):
        residual(f"down_modules.{i}.0", channels[i - 1] if i else action, outputs)
        residual(f"down_modules.{i}.1", outputs, outputs)
        if i < len(channels) - 1:
            layer(f"down_modules.{i}.2", outputs, outputs, 3)
    for i in range(2):
        residual(f"mid_modules.{i}", channels[-1], channels[-1])
    for i in range(len(channels) - 1):
        inputs, outputs = channels[-1 - i], channels[-2 - i]
        residual(f"up_modules.{i}.0", 2 * inputs, outputs)
        residual(f"up_modules.{i}.1", outputs, outputs)
        layer(f"up_modules.{i}.2", outputs, outputs, 4)
    convolution("final_conv.0", channels[0], channels[0])
    layer("final_conv.1", action, channels[0], 1)
    return shapes


def built(spec=UNet1D(), horizon=16):  # noqa: B008
    torch.manual_seed(0)
    return spec.build(horizon, ACTION, TOKENS)


def inputs(batch, horizon=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, horizon, ACTION), (batch,), (batch, *TOKENS)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def output(network, x, log_snr, tokens):
    return network(x, log_snr, network.prepare(tokens))


@pytest.mark.parametrize(
    ("channels", "kernel", "embedding", "count"),
    [((64, 128, 256), 5, 128, 148), ((256, 512, 1024), 5, 256, 148), ((16, 32), 3, 32, 100)],
)
@pytest.mark.parametrize("scale", [True, False])
def test_tensors_are_those_of_published_checkpoints(channels, kernel, embedding, count, scale):
    with torch.device("meta"):
        network = built(UNet1D(channels, kernel, embedding=embedding, conditioning=FiLM(scale=scale)))
    expected = published_shapes(channels, kernel, embedding, ACTION, TOKENS[0] * TOKENS[1], 1 + scale)
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected
    assert len(expected) == count


def test_a_published_state_dict_loads_strictly():
    network, generator = built(), torch.Generator().manual_seed(3)
    shapes = published_shapes((64, 128, 256), 5, 128, ACTION, TOKENS[0] * TOKENS[1])
    state = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    before = output(network, *inputs(1))
    network.load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not torch.allclose(output(network, *inputs(1)), before, atol=1e-3)
    del state["mid_modules.1.cond_encoder.1.bias"]
    with pytest.raises(RuntimeError, match=r"mid_modules\.1\.cond_encoder\.1\.bias"):
        network.load_state_dict(state)


def published_output(state, x, level, condition, parts, levels):
    """The published forward pass in plain functions, with `condition` beside the embedded level and `parts` of FiLM."""

    def convolution(name, h, **settings):
        return functional.conv1d(h, state[f"{name}.weight"], state[f"{name}.bias"], **settings)

    def block(name, h):
        h = convolution(f"{name}.block.0", h, padding=state[f"{name}.block.0.weight"].shape[2] // 2)
        return functional.mish(
            functional.group_norm(h, 8, state[f"{name}.block.1.weight"], state[f"{name}.block.1.bias"])
        )

    def linear(name, c):
        return functional.linear(c, state[f"{name}.weight"], state[f"{name}.bias"])

    def residual(name, h):
        film = linear(f"{name}.cond_encoder.1", functional.mish(joint)).unsqueeze(-1).chunk(parts, 1)
        inner = block(f"{name}.conv1", h)
        inner = film[0] * inner + film[1] if parts == 2 else inner + film[0]
        past = convolution(f"{name}.residual_conv", h) if f"{name}.residual_conv.weight" in state else h
        return block(f"{name}.conv2", inner) + past

    level = linear("diffusion_step_encoder.3", functional.mish(linear("diffusion_step_encoder.1", level)))
    joint, h, skips = torch.cat([level, condition], 1), x.transpose(1, 2), []
    for i in range(levels):
        h = residual(f"down_modules.{i}.1", residual(f"down_modules.{i}.0", h))
        skips.append(h)
        h = convolution(f"down_modules.{i}.2", h, stride=2, padding=1) if i < levels - 1 else h
    h = residual("mid_modules.1", residual("mid_modules.0", h))
    for i in range(levels - 1):
        h = residual(f"up_modules.{i}.1", residual(f"up_modules.{i}.0", torch.cat([h, skips.pop()], 1)))
        names = [f"up_modules.{i}.2.{part}" for part in ("weight", "bias")]
        h = functional.conv_transpose1d(h, *(state[name] for name in names), stride=2, padding=1)
    return convolution("final_conv.1", block("final_conv.0", h)).transpose(1, 2)


@pytest.mark.parametrize("conditioning", [FiLM(), FiLM(scale=False), Concatenate()], ids=str)
@pytest.mark.parametrize("batch", [2, 12])
def test_the_forward_pass_is_the_published_one(conditioning, batch):
    """Also under concatenation, where the tokens are further channels and the level alone makes scale and bias."""
    network = built(UNet1D((16, 32), embedding=32, conditioning=conditioning)).double()
    x, log_snr, tokens = inputs(batch, dtype=torch.float64)
    flat, doors = tokens.flatten(1), conditioning.doors
    wide = torch.cat([x, flat[:, None].expand(-1, x.shape[1], -1)], 2) if doors.entrance else x
    condition = flat if doors.modulation else flat[:, :0]
    level = network.diffusion_step_encoder[0](log_snr)
    expected = published_output(network.state_dict(), wide, level, condition, 1 + doors.scale, 2)
    torch.testing.assert_close(output(network, x, log_snr, tokens), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("spec", "horizon"),
    [(UNet1D(), 16), (UNet1D((24, 40), kernel=3, embedding=32), 10), (UNet1D((8,), kernel=7, embedding=16), 5)],
)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_matrix_products_equal_convolutions(monkeypatch, spec, horizon, batch):
    network, given = built(spec, horizon).double(), inputs(batch, horizon, torch.float64)
    products = output(network, *given)
    single = output(network.float(), *[values.float() for values in given])
    monkeypatch.setattr(convolution, "_FEW", 0)
    convolutions = output(network.double(), *given)
    torch.testing.assert_close(products, convolutions, atol=1e-12, rtol=0)
    torch.testing.assert_close(single.double(), convolutions, atol=1e-5, rtol=0)


def test_gradients_of_matrix_products_equal_those_of_convolutions(monkeypatch):
    gradients = []
    for few in (8, 0):
        monkeypatch.setattr(convolution, "_FEW", few)
        network = built().double()
        output(network, *inputs(4, dtype=torch.float64)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-10, rtol=0, msg=lambda m, name=name: name + m)


def test_a_row_does_not_depend_on_its_batch():
    """Twelve rows take the convolutions, one and eight the matrix products."""
    network, (x, log_snr, tokens) = built(), inputs(12)
    with torch.no_grad():
        together = output(network, x, log_snr, tokens)
        for rows in (slice(0, 1), slice(3, 11), slice(11, 12)):
            alone = output(network, x[rows], log_snr[rows], tokens[rows])
            torch.testing.assert_close(alone, together[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [2, 12])
def test_bfloat16_autocast_stays_near_float32(batch):
    network, given = built(), inputs(batch)
    with torch.autocast("cpu", torch.bfloat16):
        loose = output(network, *given)
    torch.testing.assert_close(loose.float(), output(network, *given), atol=0.05, rtol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 12])
def test_compiles_without_a_break(batch, training):
    """Outside of training to products with matrices that a compiler can pack, also where steps halve and double."""
    network, (x, log_snr, tokens) = built(UNet1D((16, 32), embedding=32)).train(training), inputs(batch)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        prepared = network.prepare(tokens)
        torch.testing.assert_close(compiled(x, log_snr, prepared), network(x, log_snr, prepared), atol=1e-5, rtol=0)


def test_conforms():
    check_network(UNet1D(channels=(16, 32), embedding=32))
    check_network(UNet1D())


def test_a_horizon_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="got horizon=18, expected a multiple of 4"):
        UNet1D().build(18, ACTION, TOKENS)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.bfloat16, 0.01)])
def test_mish_and_its_slope_are_those_of_pytorch(dtype, error):
    x = torch.cat([torch.linspace(-30, 30, 241), torch.tensor([-1e4, 19.9, 20.1, 1e4])]).to(dtype).requires_grad_()
    g = torch.linspace(-1, 1, len(x)).to(dtype)
    found = [(y, *torch.autograd.grad(y, x, g)) for y in (_Mish.apply(x), functional.mish(x))]
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs, atol=error, rtol=error)


def test_training_in_bfloat16_computes_what_evaluation_does():
    torch.manual_seed(0)
    network = UNet1D(channels=(16, 32), embedding=32).build(16, ACTION, TOKENS)
    x, log_snr, tokens = torch.randn(3, 16, ACTION), torch.randn(3), torch.randn(3, *TOKENS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        trained, plain = (n(x, log_snr, n.prepare(tokens)) for n in (network.train(), copy.deepcopy(network).eval()))
    torch.testing.assert_close(trained, plain, atol=0.02, rtol=0.02)


def result_and_gradients(layer, x, seed=1):
    """Of a layer: what it computes, and the gradients with respect to its input and its tensors."""
    x = x.clone().requires_grad_()
    y = layer(x)
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], g)]


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (7, 3)])
@pytest.mark.parametrize("length", [1, 2, 4, 7, 16])
def test_training_by_places_computes_the_convolution_and_its_gradients(kernel, stride, length, monkeypatch):
    monkeypatch.setattr(convolution, "_AVX2", True)
    torch.manual_seed(0)
    layer, x = Convolution(6, 8, kernel, stride).double(), torch.randn(12, 6, length, dtype=torch.float64)
    plain = result_and_gradients(layer.eval(), x)
    for trained in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        for mine, torchs in zip(result_and_gradients(layer.train(), trained), plain, strict=True):
            torch.testing.assert_close(mine, torchs, atol=1e-12, rtol=0)


def test_large_batches_in_bfloat16_go_by_places_too():
    torch.manual_seed(0)
    layer, x = Convolution(32, 32, 5), torch.randn(convolution._LARGE, 32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution.row_by_row(layer.train(), x)
        trained, plain = (result_and_gradients(layer.train(training), x) for training in (True, False))
    for mine, torchs in zip(trained, plain, strict=True):
        torch.testing.assert_close(mine, torchs, atol=0.02 * torchs.abs().max().item(), rtol=0)


def test_many_plans_are_what_few_are(monkeypatch):
    monkeypatch.setattr(convolution, "_AVX2", True)
    network, given = built().double(), inputs(64, dtype=torch.float64)
    assert convolution.row_by_row(network, given[0])
    few = [output(network, *(values[rows] for values in given)) for rows in (slice(0, 32), slice(32, 64))]
    torch.testing.assert_close(output(network, *given), torch.cat(few), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("batch", "training"), [(12, True), (64, False)])
def test_large_batches_stay_as_rows_in_memory(batch, training, monkeypatch):
    """Or every layer would turn them over."""
    monkeypatch.setattr(convolution, "_AVX2", True)
    network, as_rows = built().train(training), []
    for module in network.modules():
        if type(module).__name__ in ("_ConvBlock", "_ResidualBlock"):
            module.register_forward_hook(lambda *given: as_rows.append(given[-1].transpose(1, 2).is_contiguous()))
    output(network, *inputs(batch))
    assert as_rows
    assert all(as_rows)


def test_the_gradient_by_products_is_that_of_the_convolution():
    """In bfloat16, where plans are short and channels many, training on a CPU computes that of the weights its way."""
    torch.manual_seed(0)
    layer, x = Convolution(256, 256, 5), torch.randn(3, 256, 4)
    assert layer.wide
    with torch.autocast("cpu", torch.bfloat16):
        trained, plain = (result_and_gradients(layer.train(training), x) for training in (True, False))
    for mine, torchs in zip(trained, plain, strict=True):
        torch.testing.assert_close(mine, torchs, atol=0.02 * torchs.abs().max().item(), rtol=0)
