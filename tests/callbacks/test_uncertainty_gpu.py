import pytest
import torch

import stablelightning as sl
from stablelightning.callbacks import EstimateUncertainty
from tests.callbacks.modules import CLASSES, NoisyRegressor, Plain, loader, quiet_trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_one_gpu(precision):
    callback = EstimateUncertainty(samples=20)
    trainer = quiet_trainer(callback, accelerator="gpu", precision=precision, max_epochs=1)
    model = Plain()
    trainer.fit(model, loader())
    trainer.test(model, loader(), verbose=False)
    assert callback.rows["mean"].shape == (20, CLASSES)
    assert {column.device.type for column in callback.rows.values()} == {"cpu"}
    assert callback.results["uncertainty/epistemic"] > 0
    torch.testing.assert_close(
        callback.rows["mean"], callback.rows["deterministic"], atol=0.3, rtol=0
    )
    (first, *_) = trainer.predict(model, loader())
    assert isinstance(first, sl.Prediction)
    assert first.mean.device.type == "cpu"  # Lightning collects predictions there


def test_ddp_on_one_gpu():
    callback = EstimateUncertainty(samples=20)
    trainer = quiet_trainer(callback, accelerator="gpu", strategy="ddp")
    try:
        trainer.test(NoisyRegressor(), loader(kind="values"), verbose=False)
    finally:
        torch.distributed.destroy_process_group()
    assert callback.rows["index"].tolist() == list(range(20))
    assert callback.results["uncertainty/nll_mc"] > 0
