"""A probe finds the depth at which a task can be read, and leaves nothing behind."""

import pytest
import torch
from torch import nn

from stablelightning.errors import DataError, ModelError, RecipeError
from stablelightning.model.depth import depth_groups
from stablelightning.model.probe import ProbeProfile, pooled_features, probe_by_depth


class Xor(nn.Module):
    """The first layer makes what tells the classes apart, and the second forgets it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]]))
            self.first.bias.zero_()
            self.second.weight.copy_(torch.tensor([[1.0, 1, 1, 1]]).expand(4, 4) * 0)
            self.second.bias.fill_(1.0)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head(self.second(x))


def xor(rows=200):
    x = torch.randn(rows, 2)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def test_the_profile_tells_where_the_task_can_be_read():
    profile = probe_by_depth(Xor(), [xor()])
    inputs, first, second = (score.value for score in profile.scores)
    assert inputs < 0.65
    assert first > 0.9
    assert second == pytest.approx(0.5)
    assert profile.groups == ("first", "second", "head")
    assert (profile.best, profile.kind, profile.classes) == (1, "accuracy", 2)
    assert (profile.best, profile.rows, profile.at_head.value) == (1, 200, second)


def test_depth_counts_what_lies_between_the_groups():
    """What the second layer reads comes after the function that follows the first."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[0].bias.zero_()
    x = torch.linspace(-3, 3, 100)[:, None]
    profile = probe_by_depth(net, [(x, (x[:, 0].abs() > 1.5).long())])
    assert profile.scores[0].value < 0.6
    assert profile.scores[1].value > 0.9


def test_numbers_are_probed_by_the_variance_that_is_explained():
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(100, 3)
    profile = probe_by_depth(net, [(x, x @ torch.ones(3, 1))])
    assert (profile.kind, profile.classes, profile.fewest) == ("r2", 0, 100)
    assert profile.scores[0].value > 0.99


def test_whole_numbers_are_no_labels_where_the_task_says_so():
    x = torch.randn(50, 3)
    target = (10 * x[:, 0]).long()
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    assert probe_by_depth(net, [(x, target)], task="regression").kind == "r2"


def test_nothing_is_left_behind():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)
    )
    net.train()[1].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(20, 1, 8, 8)
    rng = torch.get_rng_state()
    probe_by_depth(net, [(x, torch.arange(20) % 2)])
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net] == [True, False, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_hooks_are_taken_off_where_the_forward_fails():
    net = Xor()
    with pytest.raises(RuntimeError):
        probe_by_depth(net, [(torch.randn(4, 7), torch.arange(4) % 2)])
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_no_more_rows_are_read_than_asked_for():
    x, y = xor()
    read = []

    def batches():
        for start in range(0, 200, 20):
            read.append(start)
            yield x[start : start + 20], y[start : start + 20]

    assert probe_by_depth(Xor(), batches(), rows=50).rows == 60
    assert read == [0, 20, 40]


def test_rows_without_a_label_are_left_out():
    x, y = xor()
    y[:30] = -100
    profile = probe_by_depth(Xor(), [(x, y)])
    assert (profile.rows, profile.classes) == (170, 2)


def test_tokens_and_words_are_read():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 6)
            self.memory = nn.LSTM(6, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, words):
            return self.head(self.memory(self.table(words).transpose(0, 1))[0][-1])

    words = torch.randint(5, (60, 7))
    profile = probe_by_depth(Words(), [(words, (words[:, -1] > 2).long())])
    assert profile.scores[0] is None  # words are no numbers
    assert profile.scores[1].value > 0.9


def test_groups_of_the_users_own_are_probed():
    net = Xor()
    groups = depth_groups(net, named=[["first", "second"], "head"])
    assert probe_by_depth(net, [xor()], groups=groups).groups == ("first, second", "head")


def test_a_profile_goes_through_plain_types():
    profile = probe_by_depth(Xor(), [xor()])
    assert ProbeProfile.from_dict(profile.to_dict()) == profile


@pytest.mark.parametrize(
    ("shape", "channels_first", "expected"),
    [
        ((3, 7), True, (3, 7)),
        ((3,), True, (3, 1)),
        ((3, 5000), True, (3, 2048)),
        ((3, 4, 6, 6), True, (3, 144)),
        ((3, 512, 9, 9), True, (3, 2048)),
        ((3, 9, 9, 512), False, (3, 2048)),
        ((3, 197, 192), False, (3, 1920)),
        ((197, 3, 192), False, (3, 1920)),
        ((3, 64, 8, 8, 8), True, (3, 1728)),
        ((5, 4), True, None),
    ],
)
def test_features_are_pooled_to_a_row_of_at_most_2048(shape, channels_first, expected):
    values = pooled_features(torch.randn(shape), 3, channels_first=channels_first)
    assert (None if values is None else tuple(values.shape)) == expected


def test_pooling_averages_places_and_not_channels():
    values = torch.arange(1024.0).reshape(1, 1024, 1, 1).expand(1, 1024, 4, 4)
    assert torch.equal(pooled_features(values, 1, channels_first=True)[0], torch.arange(1024.0))
    last = values.movedim(1, -1)
    assert torch.equal(pooled_features(last, 1, channels_first=False)[0], torch.arange(1024.0))


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([], "got none"),
        ([(torch.randn(4, 2), None)], "a target for each row"),
        ([(torch.randn(4, 2), torch.zeros(4, 8, 8).long())], r"\(4, 8, 8\)"),
        ([(torch.randn(4, 2), torch.arange(4))], "two classes with two rows"),
    ],
)
def test_data_that_cannot_be_probed_is_refused(batches, says):
    with pytest.raises(DataError, match=says):
        probe_by_depth(Xor(), batches)


def test_a_head_that_is_never_called_is_refused():
    net = Xor()
    net.forward = lambda x: net.second(net.first(x))
    with pytest.raises(ModelError, match=r"what the head \(head\) of Xor reads"):
        probe_by_depth(net, [xor()])


def test_too_few_rows_are_refused():
    with pytest.raises(RecipeError, match="rows must be a whole number >= 4"):
        probe_by_depth(Xor(), [xor()], rows=3)
