"""Every network under every conditioning, and each against plain PyTorch: layers, masks, modulations, sizes."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from poise.nn import (
    MLP,
    Concatenate,
    Conditioning,
    CrossAttention,
    DiT,
    FiLM,
    Joined,
    Level,
    Network,
    NetworkSpec,
    Transformer,
    UNet1D,
)
from poise.nn.attention import MultiHead
from poise.nn.embeddings import Sinusoidal
from poise.plain import concrete, from_plain, to_plain
from poise.testing import check_network

SMALL = {
    "MLP": MLP(width=32, depth=2, condition=16),
    "UNet1D": UNet1D((16, 32), embedding=32),
    "Transformer": Transformer(width=32, depth=2),
    "DiT": DiT(width=32, depth=2),
}
BOTH = Joined((Concatenate(), FiLM()))
CONDITIONINGS = [
    *(Concatenate(), FiLM(), FiLM(scale=False), CrossAttention(heads=2), BOTH),
    *(Joined((Concatenate(), CrossAttention())), Joined((FiLM(scale=False), CrossAttention(), Concatenate()))),
]


def ours(base):
    """The concrete classes of the library, with those that were added since."""
    return {name: kind for name, kind in concrete(base).items() if kind.__module__.startswith("poise.")}


NETWORKS = [SMALL.get(name) or kind() for name, kind in ours(NetworkSpec).items()]
CONDITIONINGS += [k() for n, k in ours(Conditioning).items() if n not in {type(c).__name__ for c in CONDITIONINGS}]
PAIRS = [
    pytest.param(spec, conditioning, id=f"{type(spec).__name__}-{conditioning}")
    for spec in NETWORKS
    for conditioning in CONDITIONINGS
]
TOKENS, HORIZON, ACTION = (3, 5), 8, 2


def refused(spec, conditioning):
    doors = conditioning.doors
    return {
        "MLP": bool(doors.attention),
        "Transformer": doors.modulation or not doors.attention,
    }.get(type(spec).__name__, False)


def built(spec, seed=0, tokens=TOKENS):
    """A network in float64 none of whose tensors is zero."""
    torch.manual_seed(seed)
    network = spec.build(HORIZON, ACTION, tokens).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


def inputs(batch=3, tokens=TOKENS):
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, HORIZON, ACTION), (batch,), (batch, *tokens)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def output(network, x, log_snr, tokens):
    return network(x, log_snr, network.prepare(tokens))


def near(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("spec", "conditioning"), PAIRS)
def test_every_network_conforms_under_every_conditioning_or_refuses_it(spec, conditioning):
    if refused(spec, conditioning):
        with pytest.raises(ValueError, match=rf"{type(spec).__name__} got conditioning=.*, expected .*: for .* use "):
            dataclasses.replace(spec, conditioning=conditioning)
    else:
        check_network(dataclasses.replace(spec, conditioning=conditioning))


@pytest.mark.parametrize("spec", [*NETWORKS, Transformer(width=32, depth=2, causal=True, aligned=True)])
def test_defaults_conform_and_travel_as_plain_data(spec):
    check_network(spec)
    known = concrete(NetworkSpec, Conditioning, Level)
    assert from_plain(to_plain(spec), known) == spec
    other = dataclasses.replace(SMALL["DiT"], conditioning=CONDITIONINGS[-1])
    assert from_plain(to_plain(other), known) == other


@dataclass(frozen=True)
class _Faulty(NetworkSpec):
    fault: str

    def build(self, horizon, action, tokens):
        return _FaultyNetwork(self.fault, horizon * action, tokens)


class _FaultyNetwork(Network):
    def __init__(self, fault, plan, tokens):
        super().__init__()
        self.fault = fault
        self.first, self.second = nn.Linear(1 + plan + tokens[0] * tokens[1], 64), nn.Linear(64, plan)
        self.idle = nn.Parameter(torch.ones(1)) if fault == "idle" else None
        self.hidden = torch.rand(1).item() if fault == "hidden" else 0.0
        self.bound = lambda h: self.second(h)

    def prepare(self, tokens):
        if self.fault == "token":
            tokens = torch.cat([tokens[:, :1], 0 * tokens[:, 1:]], 1)
        if self.fault == "order":
            tokens = tokens.mean(1, keepdim=True).expand_as(tokens)
        return [tokens.flatten(1)]

    def forward(self, x, log_snr, prepared):
        level = 0 * log_snr if self.fault == "level" else log_snr
        h = self.first(torch.cat([level[:, None], x.flatten(1), prepared[0]], 1)).tanh()
        h = h - h.mean(0) if self.fault == "batch" else h
        if self.fault == "state":
            prepared[0] = 1.1 * prepared[0]
        second = self.bound if self.fault == "copy" else self.second
        y = second(h).reshape(x.shape) + self.hidden
        y = 1.001 * y if self.fault == "precision" and x.dtype == torch.float32 else y
        y = y + torch.zeros(x.shape[-1]) if self.fault == "device" else y
        y = y.view(len(x), -1, *x.shape[1:])[:, 0] if self.fault == "empty" else y
        return y[:, 1:] if self.fault == "shape" and len(x) == 2 else y


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("idle", r"no gradient reaches \['idle'\]"),
        ("token", "token 1 does not matter"),
        ("order", "the order of the tokens does not matter"),
        ("level", "log_snr does not matter"),
        ("batch", "an output depends on its batch"),
        ("state", "a call changes what was prepared"),
        ("hidden", "the state dict is not all"),
        ("precision", "float32 strays from float64"),
        ("shape", r"output \(2, 15, 3\) for \(2, 16, 3\)"),
        ("device", "fails for another device"),
        ("empty", "fails for an empty batch"),
        ("copy", "a deep copy changes with its original"),
    ],
)
def test_the_conformance_test_finds_faults(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_network(_Faulty(fault))
    check_network(_Faulty("none"))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_pytorchs(masked):
    torch.manual_seed(0)
    mine, theirs = MultiHead(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    mine.load_state_dict(theirs.state_dict())
    h, tokens = torch.randn(2, 5, 12).double(), torch.randn(2, 4, 12).double()
    for memory in (h, tokens):
        mask = torch.rand(5, memory.shape[1]) > 0.4 if masked else None
        mask = None if mask is None else mask | (torch.arange(memory.shape[1]) == 0)
        expected = theirs(h, memory, memory, attn_mask=None if mask is None else ~mask, need_weights=False)[0]
        near(mine(h, mine.memory(memory), mask), expected)
    near(mine(h), theirs(h, h, h, need_weights=False)[0])


def published_transformer_shapes(width, depth, horizon, action, tokens):
    """Names and shapes of the tensors of a published checkpoint, its constant masks left out."""
    shapes = {"pos_emb": (1, horizon, width), "cond_pos_emb": (1, 1 + tokens[0], width)}

    def layer(name, *weight):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, (weight[0],)

    layer("input_emb", width, action)
    layer("cond_obs_emb", width, tokens[1])
    layer("encoder.0", 4 * width, width)
    layer("encoder.2", width, 4 * width)
    layer("head", action, width)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (width,)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, 4, 4 * width), depth)
    return shapes | {f"decoder.{name}": tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}


@pytest.mark.parametrize(("width", "depth"), [(256, 8), (32, 2)])
def test_the_transformer_has_the_published_tensors(width, depth):
    with torch.device("meta"):
        network = Transformer(width, depth).build(10, 2, (2, 20))
        expected = published_transformer_shapes(width, depth, 10, 2, (2, 20))
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_the_transformer_equals_that_of_pytorch(causal, aligned):
    """The published forward pass, with the decoder of PyTorch and masks of minus infinity."""
    network, (x, log_snr, tokens) = built(Transformer(16, 2, 4, causal=causal, aligned=aligned)), inputs()
    layer = nn.TransformerDecoderLayer(16, 4, 64, 0.0, functional.gelu, batch_first=True, norm_first=True)
    decoder = nn.TransformerDecoder(layer, 2).double().eval()
    decoder.load_state_dict(network.decoder.state_dict())
    embedded = torch.cat([Sinusoidal(16)(log_snr)[:, None], network.cond_obs_emb(tokens)], 1) + network.cond_pos_emb
    mask, memory_mask = torch.zeros(HORIZON, HORIZON), torch.zeros(HORIZON, 1 + TOKENS[0])
    for step in range(HORIZON):
        mask[step, step + 1 :] = -torch.inf
        memory_mask[step, step + 2 :] = -torch.inf
    h = decoder(
        network.input_emb(x) + network.pos_emb,
        network.encoder(embedded),
        tgt_mask=mask.double() if causal else None,
        memory_mask=memory_mask.double() if aligned else None,
    )
    near(output(network, x, log_snr, tokens), network.head(network.ln_f(h)))


@pytest.mark.parametrize("causal", [False, True])
def test_under_the_causal_mask_a_step_sees_no_later_one(causal):
    network, (x, log_snr, tokens) = built(Transformer(16, 2, causal=causal)), inputs()
    later = x.clone()
    later[:, 5:] += 1
    moved = (output(network, later, log_snr, tokens) - output(network, x, log_snr, tokens)).abs().amax((0, 2))
    assert bool((moved[5:] > 1e-4).all())
    assert bool((moved[:5] < 1e-12).all()) == causal


@pytest.mark.parametrize("aligned", [False, True])
def test_aligned_tokens_are_seen_from_their_step_on(aligned):
    """Under the causal mask too, without which later steps would pass on what they see."""
    network, (x, log_snr, tokens) = built(Transformer(16, 2, causal=True, aligned=aligned)), inputs()
    other = tokens.clone()
    other[:, 2] += 1
    moved = (output(network, x, log_snr, other) - output(network, x, log_snr, tokens)).abs().amax((0, 2))
    assert bool((moved[2:] > 1e-6).all())
    assert bool((moved[:2] < 1e-12).all()) == aligned


def test_the_memory_of_the_observation_is_computed_once_a_plan():
    network, (x, log_snr, tokens) = built(SMALL["Transformer"]), inputs()
    encoded = []
    network.encoder.register_forward_hook(lambda module, given, result: encoded.append(given[0].shape[1]))
    prepared = network.prepare(tokens)
    for level in range(3):
        network(x, log_snr + level, prepared)
    assert encoded == [TOKENS[0], 1, 1, 1]


class _Whole(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, log_snr, tokens):
        return output(self.network, x, log_snr, tokens)


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL)
def test_networks_export_for_any_batch(spec):
    network = _Whole(built(spec))
    batch = {0: torch.export.Dim("batch", min=9, max=512)}  # from 9 on the U-Net convolves
    program = torch.export.export(network, tuple(inputs(12)), dynamic_shapes=(batch, batch, batch))
    near(program.module()(*inputs(20)), network(*inputs(20)))


def test_dropout_hides_in_training_only():
    spec = Transformer(16, 2, dropout=0.5)
    network, given = built(spec), inputs()
    plain = built(dataclasses.replace(spec, dropout=0.0)).train()
    near(output(network, *given), output(plain, *given))
    network.train()
    assert (output(network, *given) - output(network, *given)).abs().max() > 1e-2


@pytest.mark.parametrize("conditioning", CONDITIONINGS, ids=str)
def test_dit_begins_as_zero_with_blocks_that_are_the_identity(conditioning):
    network = DiT(width=32, depth=2, conditioning=conditioning).build(HORIZON, ACTION, TOKENS).double()
    x, log_snr, tokens = inputs()
    assert output(network, x, log_snr, tokens).abs().max() == 0
    h, condition = torch.randn(3, HORIZON, 32).double(), torch.randn(3, 32).double()
    memory = network.blocks[0].attend.prepare(tokens)
    assert torch.equal(network.blocks[0](h, condition, memory), h)


@pytest.mark.parametrize("scale", [False, True])
def test_a_block_of_dit_equals_its_formula(scale):
    network = built(DiT(width=16, depth=1, conditioning=FiLM(scale=scale)))
    block, h, condition = network.blocks[0], torch.randn(3, HORIZON, 16).double(), torch.randn(3, 16).double()
    attention = nn.MultiheadAttention(16, 4, batch_first=True).double()
    attention.load_state_dict(block.attention.state_dict())
    parts = (condition @ block.modulation.linear.weight.T + block.modulation.linear.bias)[:, None].split(16, -1)
    (g1, b1, s1), (g2, b2, s2) = (parts[:3], parts[3:]) if scale else ((*parts[:2], 0), (*parts[2:], 0))
    inner = (1 + s1) * functional.layer_norm(h, (16,)) + b1
    expected = h + g1 * attention(inner, inner, inner)[0]
    expected = expected + g2 * block.mlp((1 + s2) * functional.layer_norm(expected, (16,)) + b2)
    near(block(h, condition, None), expected)


@pytest.mark.parametrize("scale", [False, True])
def test_a_block_of_the_mlp_equals_its_formula(scale):
    network = built(MLP(width=16, depth=1, condition=8, conditioning=FiLM(scale=scale)))
    block, h, condition = network.blocks[0], torch.randn(3, 16).double(), torch.randn(3, 8).double()
    parts = block.modulation(condition).split(16, -1)
    assert len(parts) == 2 + scale
    s, (b, g) = parts[0] if scale else 0, parts[-2:]
    expected = h + (1 + g) * block.narrow(functional.silu(block.widen((1 + s) * functional.layer_norm(h, (16,)) + b)))
    near(block(h, condition), expected)


@pytest.mark.parametrize("spec", [SMALL["MLP"], SMALL["DiT"]], ids=["MLP", "DiT"])
def test_concatenation_adds_a_linear_map_of_the_tokens_at_the_entrance(spec):
    """With a bias that holds the map, zeros in place of the tokens give the same."""
    network, (x, log_snr, tokens) = built(dataclasses.replace(spec, conditioning=Concatenate())), inputs(1)
    y = output(network, x, log_snr, tokens)
    network.entrance.bias += network.entrance_observation.weight @ tokens.flatten()
    near(output(network, x, log_snr, 0 * tokens), y)


@pytest.mark.parametrize("spec", [SMALL["DiT"], SMALL["UNet1D"]], ids=["DiT", "UNet1D"])
def test_cross_attention_begins_as_the_identity_and_learns(spec):
    torch.manual_seed(0)
    network = dataclasses.replace(spec, conditioning=CrossAttention()).build(HORIZON, ACTION, TOKENS).double()
    for module in (m for m in network.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(module.weight, std=0.3)  # DiT begins as zero altogether
    x, log_snr, tokens = inputs()
    y = output(network, x, log_snr, tokens)
    near(output(network, x, log_snr, tokens + 1), y)
    y.square().sum().backward()
    gains = {name: p.grad for name, p in network.named_parameters() if name.endswith("gain")}
    assert gains
    assert all(grad.abs().sum() > 0 for grad in gains.values())


@pytest.mark.parametrize(
    ("spec", "millions"),
    [
        (UNet1D((256, 512, 1024), embedding=256), 65.78),
        (UNet1D((256, 512, 1024)), 63.55),
        (Transformer(depth=8), 8.97),
    ],
)
def test_published_sizes(spec, millions):
    """Push-T from key points: two actions, two observations of twenty numbers."""
    with torch.device("meta"):
        network = spec.build(16, 2, (2, 20))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossAttention(heads=0), "CrossAttention got heads=0, expected at least 1"),
        (lambda: Joined(()), r"Joined got parts that open the doors \[\], expected at least one"),
        (lambda: Joined((FiLM(), FiLM())), r"doors \['modulation', 'modulation'\], expected .* each once"),
        (lambda: UNet1D((20, 32)), r"UNet1D got channels=\(20, 32\), groups=8 .*: change the channels"),
        (lambda: UNet1D(kernel=4), "UNet1D got .* kernel=4, expected .* an odd kernel"),
        (lambda: UNet1D(kernel=-1), "UNet1D got .* kernel=-1, expected positive"),
        (lambda: UNet1D(groups=0), "UNet1D got .* groups=0 .* expected positive"),
        (lambda: UNet1D(()), r"UNet1D got channels=\(\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DiT(width=30), "^DiT cannot be built: Attention got width=30 and heads=4, .* multiple of the heads: change"),
        (DiT(width=32, heads=0), "Attention got width=32 and heads=0, expected at least one head"),
        (Transformer(width=30), "^Transformer cannot be built: Attention got width=30 and heads=4"),
        (Transformer(conditioning=CrossAttention(heads=3)), "^Transformer .* Attention got width=256 and heads=3"),
        (UNet1D(conditioning=CrossAttention(heads=5)), "^UNet1D cannot be built: Attention got width=64 and heads=5"),
        (DiT(width=33, heads=3), "Sinusoidal got width=33, expected an even number .*: choose an even width"),
        (UNet1D(embedding=15), "^UNet1D cannot be built: Sinusoidal got width=15"),
        (Transformer(aligned=True), "Transformer got aligned=True and 9 tokens for horizon=8, .*: use aligned=False"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        spec.build(HORIZON, ACTION, (9, 5))
