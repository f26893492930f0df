"""What a recipe leaves open of a network: how large it is, or what a file says it is."""

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from stablelightning.model.architecture import without_files


def describe_network(config: Namespace) -> None:
    """Write what a backbone file says that it is in the place of its path, in place.

    The recipe that a run leaves makes the network again, also where the file is gone.

    Args:
        config: the parsed settings of one verb; nothing is set where the network is not a file's.

    Raises:
        CheckpointError: the file cannot be read, or names what may not be made.
    """
    network = config.get("model.init_args.network")
    if not isinstance(network, Namespace):
        return
    written = network.as_dict()
    described = without_files(written)
    if described is not written:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(nn.Module, "network")
        parsed = parser.parse_object({"network": described})
        config["model.init_args.network"] = parsed.network


#: What a network leaves open, and what the data calls it.
_SIZES = {
    "num_outputs": "num_outputs",
    "out_features": "num_outputs",
    "in_features": "num_features",
}


def fill_sizes(config: Namespace) -> None:
    """Ask the data for the sizes of a network that are null, and set them, in place.

    A recipe for a folder or a table that it does not know cannot say how many classes or columns
    there are. Asked before the model is made, so that a folder that is missing is told before
    weights are fetched. The answer stands in the recipe that a run leaves: its checkpoint is loaded
    without the data.

    Args:
        config: the parsed settings of one verb. Nothing is asked where the network takes none of
            ``num_outputs``, ``out_features`` and ``in_features`` or has them all, and nothing is
            set where the data does not say.

    Raises:
        DataError: the data cannot be read.
    """
    settings = config.get("model.init_args.network.init_args")
    data = config.get("data")
    if not isinstance(settings, Namespace) or not isinstance(data, Namespace):
        return
    left_open = [name for name in _SIZES if name in settings and settings[name] is None]
    if not left_open:
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    asked = Namespace()  # type: ignore[no-untyped-call]
    asked["data"] = data.clone()
    # The second name is that of jsonargparse before 4.49, which warns of it since.
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    made = make(asked).data
    for name in left_open:
        settings[name] = getattr(made, _SIZES[name], None)
