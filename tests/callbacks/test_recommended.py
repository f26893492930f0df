import lightning as L

import stablelightning as sl
from tests.callbacks.modules import Plain, loader, quiet_trainer


def test_every_call_makes_new_callbacks():
    first, second = sl.recommended_callbacks(), sl.recommended_callbacks()
    assert all(isinstance(callback, L.Callback) for callback in first)
    assert not set(map(id, first)) & set(map(id, second))


def test_two_lines_are_enough():
    trainer = quiet_trainer(*sl.recommended_callbacks(), max_epochs=1)
    model = Plain()
    trainer.fit(model, loader())
    (results,) = trainer.test(model, loader(), verbose=False)
    assert {"test_loss", "uncertainty/nll", "uncertainty/nll_mc"} <= results.keys()
    assert trainer.predict(model, loader())[0].epistemic.shape == (8,)
