"""Training loop, hooks, process launching, and the default set-up that most projects share."""

from .launch import *  # noqa: F403
from .train_loop import *  # noqa: F403

# As in official detectron2, `import *` offers the loop and the launcher alone; hooks and defaults must be named.
__all__ = [name for name in globals() if not name.startswith("_")]

from .defaults import *  # noqa: F403
from .hooks import *  # noqa: F403
