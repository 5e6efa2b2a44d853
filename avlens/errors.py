"""What can go wrong, as a tree.

    AVLensError
     +- MediaError              a file or an array cannot become a Clip
     +- PromptError             a prompt cannot be prepared as asked
     +- CheckpointError         a folder does not hold the model it should
     |   +- UnsupportedSettingError   its config says something that nobody handled
     +- HookError               a hook or an activation's name cannot be used as asked
     |   +- MissingActivationError    a cache does not hold what was asked of it
     +- LayerError              a layer that does not exist
     +- PositionError           a position or a set of tokens that cannot be used here
     +- TooLargeError           activations that the free memory cannot hold
     +- BatchError              several prompts where one was needed, or the reverse
     +- DecodingError           a decoding method or setting that cannot run
     +- DatasetError            a data set's file or record that cannot be used as it is
     +- RecordError             records of a run that cannot be read, written or mixed
     +- ExperimentError         an experiment that cannot run, or go on, as asked
     +- MetricError             a metric that cannot be computed as asked
     +- ViewError               a picture that cannot be drawn as asked

Each message says what is wrong, what was given, and what to do. All but the root are also
`ValueError`s (a missing activation is a `KeyError`), so that callers who do not know avlens catch them.
"""


class AVLensError(Exception):
    """Any error that avlens raises on purpose."""


class MediaError(AVLensError, ValueError):
    """A file or an array cannot become a Clip. Names the file."""


class PromptError(AVLensError, ValueError):
    """A prompt cannot be prepared as asked."""


class CheckpointError(AVLensError, ValueError):
    """A folder or hub id does not hold a checkpoint that can be loaded."""


class UnsupportedSettingError(CheckpointError):
    """A checkpoint's config holds a setting that avlens does not handle. Names the setting."""


class HookError(AVLensError, ValueError):
    """A hook or the name of an activation cannot be used as asked."""


class MissingActivationError(HookError, KeyError):
    """A cache does not hold what was asked of it."""

    def __str__(self) -> str:
        # KeyError would show the message's repr.
        return str(self.args[0])


class LayerError(AVLensError, ValueError):
    """A layer that the model or the cache does not have."""


class PositionError(AVLensError, ValueError):
    """A position, or a set of tokens, that cannot be used here."""


class TooLargeError(AVLensError, ValueError):
    """Activations that the free memory cannot hold. Says what would fit."""


class BatchError(AVLensError, ValueError):
    """Several prompts where one was needed, or the reverse."""


class DecodingError(AVLensError, ValueError):
    """A decoding method or setting that cannot run."""


class DatasetError(AVLensError, ValueError):
    """A data set's file or record cannot be used as it is. Names the file, and the line where there is one."""


class RecordError(AVLensError, ValueError):
    """Records of a run that cannot be read, written or mixed. Names the folder."""


class ExperimentError(AVLensError, ValueError):
    """An experiment that cannot run, or go on, as asked."""


class MetricError(AVLensError, ValueError):
    """A metric that cannot be computed as asked."""


class ViewError(AVLensError, ValueError):
    """A picture that cannot be drawn as asked. Says what would fit."""
