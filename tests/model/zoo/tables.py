"""What consumes each layer, as a careful person would say it: written down before the code existed.

A table has one line for each layer, in any order: its name, its kind, what consumes its output, and
then the words that hold for it:

- ``norm``: its output is normalised before the non-linearity (or, where there is none, before every
  next layer that reads it),
- ``last``: it is the last weight layer of a residual branch,
- ``out``: its output becomes an output of the model,
- ``in``: it reads the model's own input (through nothing but views, pads and the like),
- ``d=3``: weight layers on the longest path before it, ``u=2``: times it is called (1 otherwise).

``norm?`` and the like: both answers are acceptable, for the reason given beside it. Consumers are
those of the *non-linearity*: ``linear`` means that another layer, or the outside, reads the output
as it is; several acceptable names stand with ``|`` between them; ``~gelu`` is a function written
out by hand, which may have any name, but must have these values. Every other consumer of a name
that torch knows must have that function's values too.

The rules a careful person follows where there is a choice:

- a layer that ends in a residual stream is consumed by whatever non-linearity comes next on the
  stream (the ReLU after the sum in a ResNet, the next block's in a pre-activation ResNet), by
  nothing (``linear``) where the next thing on the stream is another layer, with or without a norm;
- the projection on a skip path ends no residual branch: zeroing it would cut the stream;
- in a gated product the branch through the non-linearity is consumed by that, the other is a
  ``gate``; the scale of squeeze-and-excite is an activation like any other;
- an attention module has two weights: the joint projection that it owns (its own line), read by
  the attention itself, and that of its output, which it never calls as a module;
- a layer that is there and never runs is not in the table;
- a dot stands for the model itself, where a weight is its own.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpectedBranch:
    """A residual branch: its weight layers, the norm after the last of them, any norm inside."""

    layers: tuple[str, ...]
    last_norm: str | None
    has_norm: bool


# ---- published networks --------------------------------------------------------------------------


RESNET18 = """
conv1                  conv    relu    norm  in    d=0
layer1.0.conv1         conv    relu    norm        d=1
layer1.0.conv2         conv    relu    norm  last  d=2
layer1.1.conv1         conv    relu    norm        d=3
layer1.1.conv2         conv    relu    norm  last  d=4
layer2.0.conv1         conv    relu    norm        d=5
layer2.0.conv2         conv    relu    norm  last  d=6
layer2.0.downsample.0  conv    relu    norm        d=5
layer2.1.conv1         conv    relu    norm        d=7
layer2.1.conv2         conv    relu    norm  last  d=8
layer3.0.conv1         conv    relu    norm        d=9
layer3.0.conv2         conv    relu    norm  last  d=10
layer3.0.downsample.0  conv    relu    norm        d=9
layer3.1.conv1         conv    relu    norm        d=11
layer3.1.conv2         conv    relu    norm  last  d=12
layer4.0.conv1         conv    relu    norm        d=13
layer4.0.conv2         conv    relu    norm  last  d=14
layer4.0.downsample.0  conv    relu    norm        d=13
layer4.1.conv1         conv    relu    norm        d=15
layer4.1.conv2         conv    relu    norm  last  d=16
fc                     linear  linear        out   d=17
"""

RESNET18_BRANCHES = [
    ExpectedBranch(
        (f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2"),
        f"layer{stage}.{block}.bn2",
        True,
    )
    for stage in (1, 2, 3, 4)
    for block in (0, 1)
]


def convnext_table(depths: tuple[int, ...] = (3, 3, 9, 3)) -> str:
    """A block is depthwise, norm, expand, GELU, project; a layer norm stands before each of the
    halving convolutions. Inside a stage the next depthwise convolution reads the stream as it is;
    the last block of a stage is read through a norm only, that of the halving or of the head."""
    lines = ["features.0.0 conv linear norm in d=0"]
    depth = 1
    for stage, blocks in enumerate(depths):
        for block in range(blocks):
            path = f"features.{2 * stage + 1}.{block}.block"
            end = "norm" if block == blocks - 1 else ""
            lines += [
                f"{path}.0 conv linear norm d={depth}",
                f"{path}.3 linear gelu d={depth + 1}",
                f"{path}.5 linear linear {end} last d={depth + 2}",
            ]
            depth += 3
        if stage < len(depths) - 1:
            lines.append(f"features.{2 * stage + 2}.1 conv linear d={depth}")
            depth += 1
    lines.append(f"classifier.2 linear linear out d={depth}")
    return "\n".join(lines)


CONVNEXT_BRANCHES = [
    ExpectedBranch(tuple(f"features.{stage}.{block}.block.{i}" for i in (0, 3, 5)), None, True)
    for stage, blocks in ((1, 3), (3, 3), (5, 9), (7, 3))
    for block in range(blocks)
]


def vit_table(blocks: int) -> str:
    """Pre-norm: whatever reads the stream reads it through a norm, the head included."""
    lines = ["patch_embed.proj conv linear norm in d=0"]
    for block in range(blocks):
        path, depth = f"blocks.{block}", 1 + 4 * block
        lines += [
            f"{path}.attn.qkv linear attention d={depth}",
            f"{path}.attn.proj linear linear norm last d={depth + 1}",
            f"{path}.mlp.fc1 linear gelu d={depth + 2}",
            f"{path}.mlp.fc2 linear linear norm last d={depth + 3}",
        ]
    lines.append(f"head linear linear out d={1 + 4 * blocks}")
    return "\n".join(lines)


def vit_branches(blocks: int) -> list[ExpectedBranch]:
    parts = (("attn.qkv", "attn.proj"), ("mlp.fc1", "mlp.fc2"))
    return [
        ExpectedBranch(tuple(f"blocks.{block}.{layer}" for layer in part), None, True)
        for block in range(blocks)
        for part in parts
    ]


#: Blocks of MobileNetV3 (small): whether they squeeze and excite, their activation, their skip.
_MOBILENET_EXCITED = {1, 4, 5, 6, 7, 8, 9, 10, 11}
_MOBILENET_RELU = {1, 2, 3}
_MOBILENET_SKIPS = {3, 5, 6, 8, 10, 11}


def _mobilenet_block(block: int) -> list[str]:
    """Paths of expand (not in the first block), depthwise, excite (fc1, fc2), project."""
    path = f"features.{block}.block"
    expand = [] if block == 1 else [f"{path}.0.0"]
    at = len(expand)
    excite = [f"{path}.{at + 1}.fc1", f"{path}.{at + 1}.fc2"] if block in _MOBILENET_EXCITED else []
    project = at + 1 + bool(excite)
    return [*expand, f"{path}.{at}.0", *excite, f"{path}.{project}.0"]


def mobilenet_table() -> str:
    """The projection has a norm and no activation of its own: the next expansion reads it."""
    lines = ["features.0.0 conv hardswish norm in d=0"]
    for block in range(1, 12):
        activation = "relu" if block in _MOBILENET_RELU else "hardswish"
        *inner, project = _mobilenet_block(block)
        for layer in inner:
            if layer.endswith("fc1"):
                lines.append(f"{layer} conv relu")
            elif layer.endswith("fc2"):
                lines.append(f"{layer} conv hardsigmoid")
            else:
                lines.append(f"{layer} conv {activation} norm")
        lines.append(f"{project} conv linear norm {'last' * (block in _MOBILENET_SKIPS)}")
    lines += [
        "features.12.0 conv hardswish norm",
        "classifier.0 linear hardswish",
        "classifier.3 linear linear out",
    ]
    return "\n".join(lines)


def _norm_of(convolution: str) -> str:
    return convolution[: -len("0")] + "1"


MOBILENET_BRANCHES = [
    ExpectedBranch(tuple(layers), _norm_of(layers[-1]), True)
    for layers in (_mobilenet_block(block) for block in sorted(_MOBILENET_SKIPS))
]


# ---- hand-made convolutional networks ------------------------------------------------------------

#: The projection of a shortcut joins the stream: the next block's ReLU consumes it, through a norm.
PRE_ACTIVATION = """
stem                    conv    relu    norm  in    d=0
blocks.0.conv1          conv    relu    norm        d=1
blocks.0.conv2          conv    relu    norm  last  d=2
blocks.1.conv1          conv    relu    norm        d=3
blocks.1.shortcut       conv    relu    norm        d=3
blocks.1.conv2          conv    relu    norm  last  d=4
blocks.2.conv1          conv    relu    norm        d=5
blocks.2.conv2          conv    relu    norm  last  d=6
fc                      linear  linear        out   d=7
"""

#: No norm follows the last convolution: zeroing the norm before its ReLU would kill the branch.
PRE_ACTIVATION_BRANCHES = [
    ExpectedBranch((f"blocks.{block}.conv1", f"blocks.{block}.conv2"), None, True)
    for block in range(3)
]

#: A concatenation is read by every later unit, through that unit's own norm and ReLU.
DENSENET = """
stem            conv    relu    norm  in   d=0
units.0.conv    conv    relu    norm       d=1
units.1.conv    conv    relu    norm       d=2
transition      conv    relu    norm       d=3
last.conv       conv    relu    norm       d=4
classifier      linear  linear        out  d=5
"""

#: A transposed convolution has no activation here: the merging convolution reads it as it is.
UNET = """
down1.0    conv             silu    norm  in   d=0
down2.0    conv             silu    norm       d=1
bottom.0   conv             silu    norm       d=2
up2        transposed_conv  linear             d=3
merge2.0   conv             silu    norm       d=4
up1        transposed_conv  linear             d=5
merge1.0   conv             silu    norm       d=6
out        conv             linear        out  d=7
"""

GENERATOR = """
project  linear           relu              in   d=0
up1      transposed_conv  leaky_relu  norm       d=1
up2      transposed_conv  tanh              out  d=2
"""

#: Max pooling lies before the activation, the norm after it: nothing is normalised in between.
CONV_POOL_RELU = """
conv1  conv    elu     in   d=0
conv2  conv    elu          d=1
fc     linear  linear  out  d=2
"""

# ---- hand-made networks of rows ------------------------------------------------------------------

BY_HAND = """
layers.0  linear  ~gelu          in   d=0
layers.1  linear  ~gelu_tanh          d=1
layers.2  linear  ~softsign           d=2
layers.3  linear  ~silu               d=3
layers.4  linear  ~mish               d=4
layers.5  linear  ~leaky              d=5
layers.6  linear  ~relu               d=6
layers.7  linear  ~squared_relu       d=7
layers.8  linear  ~sine               d=8
head      linear  linear         out  d=9
"""

LOOP = """
layers.0  linear  relu    in   d=0
layers.1  linear  relu         d=1
layers.2  linear  relu         d=2
head      linear  linear  out  d=3
"""

SHARED = """
first   linear  silu    in   d=0
second  linear  silu         d=1
head    linear  linear  out  d=2
"""

#: The user's own layer: its kind may be called by any name, its consumer must be found.
OWN_LAYER = """
0  linear|other  relu    in   d=0
2  linear|other  tanh         d=1
4  linear        linear  out  d=2
"""

#: What a norm of the weights computes from them, power iterations among it, is no use of a layer.
NORMED_WEIGHTS = """
0  linear  relu    in   d=0
2  linear  tanh         d=1
4  linear  silu         d=2
6  linear  linear  out  d=3
"""

#: The decoder is a product with the same weight, not a module: whether the encoder "is" an output
#: or runs once or twice are both fair to say. Its own consumer is not open.
TIED = """
encoder  linear  tanh  in  out?  d=0  u=?
"""

TWO_HEADS = """
trunk    linear  relu     in   d=0
classes  linear  softmax  out  d=1
number   linear  linear   out  d=1
"""

SIAMESE = """
encoder  linear  tanh     in   d=0  u=2
head     linear  sigmoid  out  d=1
"""

GATED = """
inner  linear  gate|glu  in   d=0
head   linear  linear    out  d=1
"""

#: The share is an activation like any other; its layer's scale is that of a sigmoid.
HIGHWAY = """
share   linear  sigmoid  in   d=0
change  linear  relu     in   d=0
head    linear  linear   out  d=1
"""

#: A ReLU and a mirrored one read the same output: either is the consumer, and both are ReLU-like.
TWO_SIDED = """
first   linear  relu     in   d=0
second  linear  tanh          d=1
head    linear  softmax  out  d=2
"""

# ---- sequences -----------------------------------------------------------------------------------

#: The gates lie inside the recurrent layer; what reads its output is the last layer.
RECURRENT = """
embedding  embedding  linear|recurrent  in
recurrent  recurrent  linear
fc         linear     linear            out
"""

#: The next step's cell reads the state before the head does.
UNROLLED = """
read  linear     relu              in?  u=5
cell  recurrent  linear|recurrent  in?  u=5
fc    linear     linear            out
"""

LANGUAGE_MODEL = """
embedding  embedding  linear  norm  in
output     linear     linear  out
""" + "\n".join(
    f"""
blocks.{i}.attention.wq     linear  attention
blocks.{i}.attention.wk     linear  attention
blocks.{i}.attention.wv     linear  attention
blocks.{i}.attention.wo     linear  linear     norm  last
blocks.{i}.feed_forward.w1  linear  silu
blocks.{i}.feed_forward.w3  linear  gate
blocks.{i}.feed_forward.w2  linear  linear     norm  last
"""
    for i in range(2)
)

LANGUAGE_MODEL_BRANCHES = [
    ExpectedBranch(tuple(f"blocks.{i}.{layer}" for layer in layers), None, True)
    for i in range(2)
    for layers in (
        ("attention.wq", "attention.wk", "attention.wv", "attention.wo"),
        ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
    )
]

ATTENTION_BY_HAND = """
query  linear  attention|softmax  in   d=0
key    linear  attention|softmax  in   d=0
value  linear  attention|linear   in   d=0
out    linear  linear             out  d=1
"""

#: Learned queries are a weight that the keys run into, and the model itself owns it.
SUMMED_ATTENTION = """
.      linear  attention|softmax              d=1
key    linear  attention|softmax|linear  in   d=0
value  linear  attention|linear          in   d=0
out    linear  linear                    out  d=2
"""

#: The sum is read by attention through the norm, and by the head without one. The attention has
#: two weights: the joint projection of its inputs, its own, and that of its output.
MULTIHEAD = """
read                linear     linear     norm?  in  d=0
attention           attention  attention             d=1
attention.out_proj  linear     linear     last       d=2
head                linear     linear     out        d=3
"""

MULTIHEAD_BRANCHES = [ExpectedBranch(("attention", "attention.out_proj"), None, True)]


def encoder_table(layers: int, *, norm_first: bool) -> str:
    """With the norm first the head reads the stream without one: there is no final norm."""
    lines = [f"read linear linear {'norm?' if norm_first else ''} in"]
    for layer in range(layers):
        path = f"encoder.layers.{layer}"
        end = "norm?" if norm_first else "norm"
        lines += [
            f"{path}.self_attn attention attention",
            f"{path}.self_attn.out_proj linear linear {end} last",
            f"{path}.linear1 linear relu",
            f"{path}.linear2 linear linear {end} last",
        ]
    return "\n".join([*lines, "head linear linear out"])


def encoder_branches(layers: int, *, norm_first: bool) -> list[ExpectedBranch]:
    """After the sum, a norm is none of the branch's."""
    return [
        ExpectedBranch(tuple(f"encoder.layers.{layer}.{part}" for part in parts), None, norm_first)
        for layer in range(layers)
        for parts in (("self_attn", "self_attn.out_proj"), ("linear1", "linear2"))
    ]
