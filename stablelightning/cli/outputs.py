"""As many outputs as the data has classes, where a recipe leaves the number open."""

import lightning as L
from jsonargparse import ArgumentParser, Namespace


def fill_outputs(config: Namespace) -> None:
    """Ask the data for a network's ``num_outputs`` where that is null, and set it, in place.

    A recipe for a folder that it does not know cannot say how many classes there are. Asked before
    the model is made, so that a folder that is missing is told before weights are fetched. The
    answer stands in the recipe that a run leaves: its checkpoint is loaded without the data.

    Args:
        config: the parsed settings of one verb. Nothing is asked where the network takes no
            ``num_outputs`` or has it, and nothing is set where the data does not say.

    Raises:
        DataError: the data cannot be read.
    """
    settings = config.get("model.init_args.network.init_args")
    data = config.get("data")
    if not isinstance(settings, Namespace) or not isinstance(data, Namespace):
        return
    if "num_outputs" not in settings or settings["num_outputs"] is not None:
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    asked = Namespace()  # type: ignore[no-untyped-call]
    asked["data"] = data.clone()
    # The second name is that of jsonargparse before 4.49, which warns of it since.
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    settings["num_outputs"] = getattr(make(asked).data, "num_outputs", None)
