import lightning as L

import stablelightning as sl
from stablelightning.callbacks import ClipGradientValue, StopEarly
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


def test_an_own_callback_takes_the_place_of_one_of_its_kind():
    own = sl.GuardTraining(threshold=9.0), ClipGradientValue(0.5), StopEarly()
    callbacks = sl.recommended_callbacks(*own)
    assert [type(c).__name__ for c in callbacks] == [
        "InitializeWeights",
        "EstimateUncertainty",
        "GuardTraining",
        "ClipGradientValue",
        "StopEarly",
    ]
    assert set(own) <= set(callbacks)
    quiet_trainer(*callbacks, max_epochs=1)  # which takes one of a kind
