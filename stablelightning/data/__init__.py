"""Floor 3: LightningDataModules.

scikit-learn, pandas and torchvision are imported when data is read, not here.
"""

from stablelightning.data.adding import AddingData
from stablelightning.data.digits import DigitsData
from stablelightning.data.images import ImageFolderData
from stablelightning.data.tabular import TabularData
from stablelightning.data.unlabelled import UnlabelledImages

__all__ = ["AddingData", "DigitsData", "ImageFolderData", "TabularData", "UnlabelledImages"]
