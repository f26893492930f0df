"""Residual branches and depth, against what a person would count."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.model.attribution import Attribution, attribute
from stablelightning.model.trace import Trace
from tests.model.written import ROWS, Written

WIDE = torch.randn(3, 6)
IMAGES = torch.randn(2, 3, 8, 8)


def linear(*names: str, width: int = 6) -> dict[str, nn.Module]:
    return {name: nn.Linear(width, width) for name in names}


def layers_of(found: Attribution) -> list[tuple[str, ...]]:
    return [branch.layers for branch in found.branches]


def depths(found: Attribution) -> tuple[int, int]:
    return found.depth, found.plain_depth


# ---- identity shortcuts -------------------------------------------------------------------------


def test_a_plain_stack_has_no_branch():
    model = nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(6, 6), nn.ReLU())))
    found = attribute(model, WIDE)
    assert found.branches == []
    assert depths(found) == (5, 5)
    assert [r.depth for r in found.layers] == [0, 1, 2, 3, 4]


class Block(nn.Module):
    def __init__(self, width: int = 6, *, norm: str = "") -> None:
        super().__init__()
        self.norm_at = norm
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_at == "pre":
            return x + self.down(torch.relu(self.up(self.norm(x))))
        if self.norm_at == "last":
            return x + self.norm(self.down(torch.relu(self.up(x))))
        return self.norm(x + self.down(torch.relu(self.up(x))))


@pytest.mark.parametrize("blocks", [1, 2, 30])
@pytest.mark.parametrize("stem", [True, False])
def test_what_goes_around_each_block_is_not_plain(blocks: int, stem: bool):
    first = [nn.Linear(6, 6)] if stem else []
    model = nn.Sequential(*first, *(Block() for _ in range(blocks)), nn.Linear(6, 2))
    found = attribute(model, WIDE)
    place = [str(i + stem) for i in range(blocks)]
    assert layers_of(found) == [(f"{p}.up", f"{p}.down") for p in place]
    assert [b.add_in for b in found.branches] == place
    assert [(b.index, b.total) for b in found.branches] == [(i, blocks) for i in range(blocks)]
    # The way around a block passes the stem; a branch and what leads to it are two or three.
    assert depths(found) == (stem + 2 * blocks + 1, 2 + stem)


def test_a_block_whose_input_is_cast_and_reshaped_first():
    model = Written(
        lambda s, x: s.head(s.block(x.float().flatten(1))), block=Block(), head=nn.Linear(6, 2)
    )
    found = attribute(model, torch.randint(5, (3, 2, 3)))
    assert (layers_of(found), found.plain_depth) == ([("block.up", "block.down")], 2)


def test_a_block_that_is_the_whole_model():
    found = attribute(Block(), WIDE)
    assert layers_of(found) == [("up", "down")]
    assert [r.is_output for r in found.layers] == [False, True]


# ---- norms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "last_norm", "after"),
    [("pre", None, False), ("last", "norm", False), ("post", None, True)],
)
@pytest.mark.parametrize("final", [True, False])
def test_norms_of_a_stream(norm: str, last_norm: str | None, after: bool, final: bool):
    blocks = [Block(norm=norm) for _ in range(3)]
    end = [nn.LayerNorm(6)] if final and norm != "post" else []
    found = attribute(nn.Sequential(nn.Linear(6, 6), *blocks, *end, nn.Linear(6, 2)), WIDE)
    names = [b.last_norm for b in found.branches]
    assert names == [last_norm and f"{i}.{last_norm}" for i in (1, 2, 3)]
    assert [b.norm_after for b in found.branches] == [after] * 3
    assert {b.has_norm for b in found.branches} == {norm != "post"}


def test_a_final_norm_is_none_of_a_stream_without_norms():
    model = nn.Sequential(*(Block() for _ in range(3)), nn.LayerNorm(6), nn.Linear(6, 2))
    assert [b.norm_after for b in attribute(model, WIDE).branches] == [False] * 3


def test_transformer_layers_of_torch():
    for first in (True, False):
        layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, norm_first=first)
        model = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(6) if first else None)
        found = attribute(model, torch.randn(3, 5, 6))
        assert len(found.branches) == 4
        assert [b.last_layer.rpartition(".")[2] for b in found.branches] == [
            "out_proj",
            "linear2",
        ] * 2
        assert {b.norm_after for b in found.branches} == {not first}


# ---- projections, nested and parallel sums ------------------------------------------------------


def test_a_projection_goes_around_several_layers():
    model = Written(
        lambda s, x: s.c(torch.relu(s.p(x) + s.b(torch.relu(s.a(x))))),
        a=nn.Linear(4, 6),
        p=nn.Linear(4, 6),
        **linear("b", "c"),
    )
    found = attribute(model, ROWS)
    assert layers_of(found) == [("a", "b")]
    assert found.branches[0].projection == "p"
    assert depths(found) == (3, 2)
    assert found["p"].branch is None


def test_two_towers_that_are_added_are_no_branch():
    model = Written(
        lambda s, x: s.c(torch.tanh(s.a(x)) + torch.tanh(s.b(x))), **linear("a", "b", "c")
    )
    found = attribute(model, WIDE)
    assert found.branches == []
    assert depths(found) == (2, 2)


def test_a_branch_within_a_branch():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = s.stem(x)
        inner = torch.relu(s.a(x))
        inner = inner + torch.relu(s.b(inner))
        return s.head(x + s.c(inner))

    found = attribute(Written(forward, **linear("stem", "a", "b", "c", "head")), WIDE)
    assert layers_of(found) == [("b",), ("a", "b", "c")]
    assert {r.name: r.branch and r.branch.index for r in found.layers} == {
        "stem": None,
        "a": 1,
        "b": 0,
        "c": 1,
        "head": None,
    }
    # stem, a, then around b, c; or stem, a, b
    assert depths(found) == (5, 3)


def test_parallel_branches_of_one_sum():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = s.stem(x)
        return s.head(x + torch.relu(s.a(x)) + torch.relu(s.b(x)))

    found = attribute(Written(forward, **linear("stem", "a", "b", "head")), WIDE)
    assert layers_of(found) == [("a",), ("b",)]
    assert depths(found) == (3, 2)


def test_attention_and_perceptron_side_by_side():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        for _ in range(2):
            h = s.norm(x)
            x = x + s.out(torch.tanh(s.value(h))) + s.down(torch.relu(s.up(h)))
        return s.head(x)

    members = linear("value", "out", "up", "down", "head")
    found = attribute(Written(forward, norm=nn.LayerNorm(6), **members), WIDE)
    assert layers_of(found) == [("value", "out"), ("up", "down")] * 2
    assert {b.has_norm for b in found.branches} == {True}
    assert {b.norm_after for b in found.branches} == {False}


def test_a_skip_around_all_blocks_is_one_more_branch():
    model = Written(lambda s, x: s.head(x + s.b(s.a(x))), a=Block(), b=Block(), **linear("head"))
    found = attribute(model, WIDE)
    assert layers_of(found)[-1] == ("a.up", "a.down", "b.up", "b.down")
    assert len(found.branches) == 3


def test_a_scaled_branch_names_its_scale():
    model = Written(
        lambda s, x: x + s.gamma * s.b(torch.relu(s.a(x))),
        gamma=nn.Parameter(torch.tensor([0.0, -0.5, 0.25, 0, 0, 0])),
        **linear("a", "b"),
    )
    (branch,) = attribute(model, WIDE).branches
    assert (branch.scale, branch.scale_value) == ("gamma", 0.5)


# ---- what is no residual sum --------------------------------------------------------------------


def test_a_highway_is_no_residual_sum():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = s.stem(x)
        gate = torch.sigmoid(s.gate(x))
        return s.head(gate * torch.relu(s.a(x)) + (1 - gate) * x)

    found = attribute(Written(forward, **linear("stem", "gate", "a", "head")), WIDE)
    assert found.branches == []
    assert found["a"].consumer.name == "relu"


def test_a_feature_pyramid_is_no_residual_sum():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        fine = torch.relu(s.fine(x))
        coarse = fine
        for block in s.blocks:
            coarse = coarse + torch.relu(block(coarse))
        top = s.top(coarse)
        return s.out(s.side(fine) + top)

    convs = {n: nn.Conv2d(6, 6, 3, padding=1) for n in ("top", "side", "out")}
    blocks = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
    fine = nn.Conv2d(3, 6, 3, padding=1)
    found = attribute(Written(forward, fine=fine, blocks=blocks, **convs), IMAGES)
    assert layers_of(found) == [("blocks.0",), ("blocks.1",)]


@pytest.mark.parametrize("join", ["cat", "product", "broadcast"])
def test_other_ways_to_join(join: str):
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        x = s.stem(x)
        y = torch.relu(s.a(x))
        if join == "cat":
            return torch.cat([x, y], dim=1)
        return x * y if join == "product" else x + y.mean(1, keepdim=True)

    found = attribute(Written(forward, **linear("stem", "a")), WIDE)
    assert found.branches == []
    assert found.depth == 2


def test_dense_connections_are_a_way_around():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        for layer in s.dense:
            x = torch.cat([x, torch.relu(layer(x))], dim=1)
        return s.head(x)

    dense = nn.ModuleList(nn.Linear(4 + 2 * i, 2) for i in range(5))
    found = attribute(Written(forward, dense=dense, head=nn.Linear(14, 2)), ROWS)
    assert depths(found) == (6, 1)


def test_cross_attention_adds_to_the_stream_of_its_queries():
    def forward(s: nn.Module, x: Tensor, memory: Tensor) -> Tensor:
        x = s.stem(x)
        return s.head(x + s.attend(x, memory, memory, need_weights=False)[0])

    attend = nn.MultiheadAttention(6, 2, batch_first=True)
    model = Written(forward, attend=attend, **linear("stem", "head"))
    found = attribute(model, (torch.randn(3, 5, 6), torch.randn(3, 7, 6)))
    (branch,) = found.branches
    assert branch.layers == ("attend", "attend.out_proj")
    assert {r.name: r.depth for r in found.layers}["attend.out_proj"] == 2


def test_an_addition_of_two_inputs_is_no_branch():
    model = Written(lambda s, x, y: s.a(x) + y, **linear("a"))
    assert attribute(model, (WIDE, WIDE.clone())).branches == []


def test_norms_end_a_plain_stretch():
    norms = (nn.BatchNorm1d(6), nn.LayerNorm(6), nn.RMSNorm(6))
    model = nn.Sequential(*(m for n in norms for m in (nn.Linear(6, 6), nn.Linear(6, 6), n)))
    assert depths(attribute(model, WIDE)) == (6, 2)


def test_parallel_paths_count_by_the_longest():
    def forward(s: nn.Module, x: Tensor) -> Any:
        return s.head(s.c(s.b(s.a(x))) * s.d(x)), s.other(x)

    found = attribute(Written(forward, **linear("a", "b", "c", "d", "head", "other")), WIDE)
    assert depths(found) == (4, 4)
    assert {r.name for r in found.layers if r.is_output} == {"head", "other"}


# ---- reports hold no tensor of the pass ---------------------------------------------------------


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list["weakref.ref[Trace]"]:
    """Weak references to every trace that is made."""
    made: list[weakref.ref[Trace]] = []
    before = Trace.__init__

    def remember(self: Trace, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Trace, "__init__", remember)
    return made


def alive(traces: list["weakref.ref[Trace]"]) -> int:
    gc.collect()
    return sum(ref() is not None for ref in traces)


def test_no_report_keeps_a_trace(traces: list["weakref.ref[Trace]"]):
    model = nn.Sequential(nn.Linear(6, 6), Block(norm="pre"), nn.SiLU(), nn.Linear(6, 2))
    batch = (torch.randn(16, 6), torch.randint(2, (16,)))
    report = sl.initialize(model, batch[0])
    assert len(traces) > 0
    assert alive(traces) == 0
    nn.init.constant_(model[0].bias, -50.0)
    diagnosis = sl.diagnose(model, batch)
    assert alive(traces) == 0
    after = diagnosis.apply()
    assert alive(traces) == 0
    assert after.before is diagnosis
    assert report.rows


def test_a_role_keeps_no_trace(traces: list["weakref.ref[Trace]"]):
    roles = attribute(nn.Sequential(nn.Linear(6, 6), Block(norm="last"), nn.SiLU()), WIDE).layers
    assert alive(traces) == 0
    assert len(roles) == 3
