"""sl.diagnose: what it says of a model, what it leaves behind, and what it costs."""

import json
import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stablelightning as sl
from stablelightning.errors import DataError, ModelError
from stablelightning.model.cures import Treatment
from stablelightning.model.diagnosis import Diagnosis, Finding, sorted_findings


def table(rows=64, columns=20):
    return torch.randn(rows, columns), torch.randint(10, (rows,))


def mlp(depth=3, width=48, activation=nn.ReLU, inputs=20):
    layers, size = [], inputs
    for _ in range(depth):
        linear = nn.Linear(size, width)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 10))


class TestWhatIsMeasured:
    def test_a_healthy_network_has_no_findings_and_a_level_profile(self):
        diagnosis = sl.diagnose(mlp(width=512, depth=6), table(256))
        assert [f for f in diagnosis.findings if f.severity != "info"] == []
        assert abs(diagnosis.forward_slope) < 0.2
        assert abs(diagnosis.gradient_slope) < 0.2
        assert diagnosis.loss > 1

    def test_the_signal_is_that_of_the_layers(self):
        model, (inputs, target) = mlp(), table()
        diagnosis = sl.diagnose(model, (inputs, target))
        hidden = model[0](inputs)
        first = diagnosis.layers[0]
        assert [layer.name for layer in diagnosis.layers] == ["0", "2", "4", "6"]
        assert [layer.activation for layer in diagnosis.layers] == ["relu"] * 3 + ["linear"]
        assert first.mean == pytest.approx(hidden.mean().item(), abs=1e-5)
        assert first.std == pytest.approx(hidden.var(0, correction=0).mean().sqrt().item(), 1e-4)
        pairs = F.cosine_similarity(hidden[:, None], hidden[None], dim=-1)
        mean = (pairs.sum() - len(pairs)) / (len(pairs) * (len(pairs) - 1))
        assert first.cosine == pytest.approx(mean.item(), abs=1e-4)

    def test_the_gradient_is_that_of_the_loss_at_the_layers_output(self):
        model, (inputs, target) = mlp(), table()
        hidden = model[:3](inputs)
        hidden.retain_grad()
        F.cross_entropy(model[3:](hidden), target).backward()
        expected = hidden.grad.square().mean().sqrt().item()
        diagnosis = sl.diagnose(model, (inputs, target))
        assert diagnosis.layers[1].gradient_rms == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("scale", [0.5, 2.0])
    def test_slopes_of_a_linear_stack_are_the_logarithm_of_its_scale(self, scale):
        model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(8)))
        for layer in model:
            nn.init.orthogonal_(layer.weight, gain=scale)
        diagnosis = sl.diagnose(model, torch.randn(64, 32))
        assert diagnosis.forward_slope == pytest.approx(math.log(scale), abs=1e-3)
        assert diagnosis.gradient_slope == pytest.approx(-math.log(scale), abs=1e-3)

    def test_functional_activations_and_in_place_ones_are_seen(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 10)

            def forward(self, x):
                x = F.relu(self.a(x), inplace=True)
                return self.c(x.pow(1) if False else F.gelu(self.b(x)))

        diagnosis = sl.diagnose(Net(), table())
        assert [layer.activation for layer in diagnosis.layers] == ["relu", "gelu", "linear"]
        assert all(layer.dead == 0 for layer in diagnosis.layers[:2])

    def test_underflow_is_counted_in_half_precision(self):
        model = mlp().half()
        inputs, target = table()
        loss = lambda output, target: 1e-5 * F.cross_entropy(output, target)  # noqa: E731
        diagnosis = sl.diagnose(model, (inputs.half(), target), loss)
        assert diagnosis.underflow > 0.2
        assert sl.diagnose(mlp(), (inputs, target), loss).underflow == 0


class TestWhatIsLeft:
    def test_nothing_of_the_model_changes_to_the_bit(self):
        layers = (nn.Linear(20, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.ReLU())
        model = nn.Sequential(*layers, nn.utils.spectral_norm(nn.Linear(32, 10)))
        model[0].bias.requires_grad_(False)
        model[1].eval()
        model[0].weight.grad = torch.ones_like(model[0].weight)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
        batch, generator = table(), torch.get_rng_state()
        sl.diagnose(model, batch, optimizer=optimizer)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), generator)
        assert [m.training for m in model] == [True, False, True, True, True]
        assert torch.equal(model[0].weight.grad, torch.ones(32, 20))
        assert model[4].bias.grad is None
        assert not model[0].bias.requires_grad
        assert optimizer.state == {}
        assert not any(m._forward_hooks for m in model.modules() if m is not model[4])

    def test_a_model_in_eval_is_measured_in_training_and_stays_in_eval(self):
        model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        trained = sl.diagnose(model, table())
        assert sl.diagnose(model.eval(), table()).layers[0] != trained.layers[0]
        assert not any(m.training for m in model.modules())

    def test_an_optimizer_keeps_its_state(self):
        model, (inputs, target) = mlp(), table()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        F.cross_entropy(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        state = {id(p): {k: torch.as_tensor(v).clone() for k, v in s.items()}
                 for p, s in optimizer.state.items()}  # fmt: skip
        sl.diagnose(model, (inputs, target), optimizer=optimizer)
        for parameter, entries in optimizer.state.items():
            for name, value in entries.items():
                assert torch.equal(state[id(parameter)][name], torch.as_tensor(value))

    def test_the_same_model_gets_the_same_diagnosis(self):
        model, batch = nn.Sequential(*mlp(), nn.Dropout(0.5)), table()
        first, second = (json.dumps(sl.diagnose(model, batch).to_dict()) for _ in range(2))
        assert first == second


class TestBatchesAndLosses:
    def test_inputs_alone_are_projected(self):
        diagnosis = sl.diagnose(mlp(), torch.randn(64, 20))
        assert math.isfinite(diagnosis.loss)
        assert all(layer.gradient_rms > 0 for layer in diagnosis.layers)

    @pytest.mark.parametrize(
        ("target", "loss"),
        [
            (torch.randint(10, (64,)), F.cross_entropy),
            (torch.randn(64, 10), F.mse_loss),
        ],
    )
    def test_the_default_loss_follows_the_target(self, target, loss):
        model, inputs = mlp(), torch.randn(64, 20)
        expected = loss(model(inputs), target).item()
        assert sl.diagnose(model, (inputs, target)).loss == pytest.approx(expected, rel=1e-5)

    def test_dicts_and_several_inputs(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.left, self.right = nn.Linear(20, 10), nn.Linear(20, 10)

            def forward(self, a, b):
                return self.left(a) + self.right(b)

        x, y = table()
        by_name = sl.diagnose(Two(), {"a": x, "b": x, "label": y})
        by_place = sl.diagnose(Two(), (x, x, y))
        assert len(by_name.layers) == len(by_place.layers) == 2

    def test_tokens_take_classes_last(self):
        model = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 50))
        tokens = torch.randint(50, (8, 6))
        expected = F.cross_entropy(model(tokens).mT, tokens).item()
        assert sl.diagnose(model, (tokens, tokens)).loss == pytest.approx(expected, rel=1e-5)

    def test_a_given_loss_is_used(self):
        diagnosis = sl.diagnose(mlp(), table(), lambda output, target: output.square().sum() + 7)
        assert diagnosis.loss > 7

    def test_a_batch_that_does_not_fit_is_named(self):
        with pytest.raises(DataError, match="must fit the forward"):
            sl.diagnose(mlp(), table(columns=21))

    def test_a_loss_that_does_not_fit_is_named(self):
        with pytest.raises(DataError, match="loss must fit"):
            sl.diagnose(mlp(), table(), lambda output, target: F.cross_entropy(output, target[:3]))

    def test_models_without_numbers_are_refused_in_words(self):
        with pytest.raises(ModelError, match="must have parameters"):
            sl.diagnose(nn.ReLU(), torch.zeros(2, 3))
        with pytest.raises(ModelError, match="meta device"):
            sl.diagnose(nn.Linear(3, 3, device="meta"), torch.zeros(2, 3))
        with pytest.raises(ModelError, match="scripted"):
            sl.diagnose(torch.jit.script(nn.Linear(3, 3)), torch.zeros(2, 3))

    def test_a_frozen_model_is_measured_forward(self):
        model = mlp().requires_grad_(False)
        diagnosis = sl.diagnose(model, table())
        assert any("no parameter asks for a gradient" in note for note in diagnosis.notes)
        assert [layer.activation for layer in diagnosis.layers[:2]] == ["relu", "relu"]


class Classifier(L.LightningModule):
    """Logs in every step, counts its steps, and has no forward of its own."""

    def __init__(self, *, bias=0.0):
        super().__init__()
        self.encoder, self.head = nn.Linear(20, 32), nn.Linear(32, 10)
        nn.init.constant_(self.encoder.bias, bias)
        self.steps, self.losses = 0, []

    def training_step(self, batch, batch_idx):
        inputs, target = batch
        self.steps += 1
        loss = 3 * F.cross_entropy(self.head(F.relu(self.encoder(inputs))), target)
        self.losses.append(loss)
        self.log("train/loss", loss)
        self.log_dict({"train/steps": self.steps})
        return {"loss": loss}


class TestLightningModules:
    def test_their_own_step_is_the_loss_and_their_log_is_quiet(self):
        module, (inputs, target) = Classifier(), table()
        expected = 3 * F.cross_entropy(module.head(F.relu(module.encoder(inputs))), target)
        diagnosis = sl.diagnose(module, (inputs, target))
        assert diagnosis.loss == pytest.approx(expected.item(), rel=1e-5)
        assert (module.steps, module.losses) == (0, [])
        assert "log" not in vars(module)
        assert [layer.activation for layer in diagnosis.layers] == ["relu", "linear"]

    def test_faults_inside_are_named(self):
        found = sl.diagnose(Classifier(bias=-10.0), table()).findings[0]
        assert (found.code, found.module) == ("dead-units", "encoder")

    def test_a_step_that_needs_its_trainer_is_replaced_and_that_is_said(self):
        class Needy(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = mlp()

            def forward(self, x):
                return self.net(x)

            def training_step(self, batch, batch_idx):
                return self.trainer.estimated_stepping_batches * self(batch[0]).sum()

        diagnosis = sl.diagnose(Needy(), table())
        assert any("could not run without a trainer" in note for note in diagnosis.notes)
        assert len(diagnosis.layers) == 4

    def test_manual_optimization_is_never_run(self):
        class Manual(Classifier):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False

            def forward(self, x):
                return self.head(F.relu(self.encoder(x)))

            def training_step(self, batch, batch_idx):
                raise AssertionError

        diagnosis = sl.diagnose(Manual(), table())
        assert any("optimizes by itself" in note for note in diagnosis.notes)

    def test_a_stable_module(self):
        from stablelightning.module import StableModule

        module = StableModule(mlp(), task="classification")
        assert sl.diagnose(module, table()).layers[0].name == "network.0"

    def test_a_step_during_training_still_logs_afterwards(self, tmp_path):
        class Diagnosed(Classifier):
            def on_train_start(self):
                sl.diagnose(self, table())

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        module = Diagnosed()
        trainer = L.Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        data = torch.utils.data.TensorDataset(*table())
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=64))
        assert "train/loss" in trainer.callback_metrics


class TestTheDiagnosis:
    def test_it_is_plain_types_and_a_table(self):
        model = mlp()
        model[2].weight.data.mul_(100)
        diagnosis = sl.diagnose(model, table())
        again = json.loads(json.dumps(diagnosis.to_dict()))
        assert again["findings"][0]["code"] == "exploding-signal"
        assert "exploding-signal at 2" in str(diagnosis)
        assert diagnosis.worst == "error"

    def test_findings_are_sorted_worst_first_and_causes_keep_their_order(self):
        found = [Finding(code, severity, "", "") for code, severity in
                 [("a", "info"), ("b", "warning"), ("c", "error"), ("d", "warning")]]  # fmt: skip
        assert [f.code for f in sorted_findings(found)] == ["c", "b", "d", "a"]

    def test_without_findings_it_says_so(self):
        assert "no findings" in str(Diagnosis([], [], 1.0, 0.0, 0.0, 0.0))

    def test_it_prints_what_was_found_before_the_cures_and_what_these_did(self):
        old = Diagnosis([Finding("plain-depth", "warning", "0", "deep")], [], 1.0, 0.0, 0.0, 0.0)
        new = Diagnosis([], [], 1.0, 0.0, 0.0, 0.0, before=old)
        new.treatments = [Treatment("add-skips", True, "one")]
        assert str(new).splitlines()[:6] == [
            "before:",
            "  warning plain-depth at 0",
            "cures:",
            "  add-skips done: one",
            "after:",
            "no findings",
        ]

    def test_a_slope_that_two_layers_do_not_have_is_unknown(self):
        diagnosis = sl.diagnose(mlp(depth=1), table())
        assert math.isnan(diagnosis.forward_slope)
        assert "ln std unknown, of ln gradient +" in str(diagnosis).replace("-", "+")

    def test_a_cure_that_does_not_help_is_told_once(self):
        class Sigmoids(nn.Module):  # nothing can replace what a forward calls by itself
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(12))

            def forward(self, x):
                for layer in self.layers:
                    x = layer(x).sigmoid()
                return x

        cured = sl.diagnose(Sigmoids(), table(columns=20)).apply()
        assert cured.worst == "error"
        told = [str(treatment) for treatment in cured.treatments]
        assert len(told) == len(set(told)) > 1

    def test_every_finding_says_what_to_do(self):
        model = mlp(depth=30)
        for finding in sl.diagnose(model, table()).findings:
            assert finding.remedy
            assert finding.message.endswith(".")
            assert all(isinstance(v, float) for v in finding.evidence.values())


class TestCost:
    def count(self, model, run):
        passes = []
        handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
        run()
        handle.remove()
        return len(passes)

    def test_passes(self):
        """A training step is three passes (the backward counts twice): at most six are nine."""
        model, batch = mlp(), table()
        assert self.count(model, lambda: sl.diagnose(model, batch)) == 2
        optimizer = torch.optim.Adam(model.parameters())
        with_trial = self.count(model, lambda: sl.diagnose(model, batch, optimizer=optimizer))
        assert with_trial == 4

    def test_one_more_where_a_number_is_not_finite(self):
        model = nn.Sequential(*mlp(), nn.Softplus())
        loss = lambda output, target: output.sum().sub(output.sum() + 1).log()  # noqa: E731
        assert self.count(model, lambda: sl.diagnose(model, table(), loss)) == 3
