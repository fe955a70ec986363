"""The fake world: the trial program on tensors that have shapes and no values.

Every operation goes through torch's own shape functions (FakeTensorMode), on a CPU in name only: no
weight is read and no memory is needed, so a laptop walks a 70B model through its training. The
same storages are asked for and released as in the real world, and the same tracker counts them.

Real programs run in it unchanged. `world` surrounds them, `values` keeps the few values that exist
(tokens, labels, masks), `loading` turns a model on the meta device into one that was loaded.
"""

from tradebench.worlds.fake.loading import load
from tradebench.worlds.fake.outliers import Outliers
from tradebench.worlds.fake.world import fake_world

__all__ = ["Outliers", "fake_world", "load"]
