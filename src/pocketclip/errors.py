"""The exceptions that PocketCLIP raises on purpose.

    PocketCLIPError
    ├── RecipeError       a recipe file or an override: unknown key, wrong type, impossible value
    ├── CollectError      a dump, a provider or a list of found images that cannot be used
    ├── DataError         shards, an index or a manifest: missing, damaged, empty
    ├── TokenizerError    a vocabulary that cannot be learned or does not fit the model
    ├── BundleError       a trained model's folder: missing, damaged, of another version
    ├── ConvertError      another project's model that cannot be read, or a bundle that it cannot hold
    ├── CheckpointError   what a run needs to go on: damaged, or of another recipe
    ├── TrainingError     training cannot go on: NaN loss, an unwritable run folder
    └── EngineError       workers that died, a Ray cluster that cannot be reached

Each message names the file or the key, says what was found and what to do. The command line prints
the message alone, on one line, and exits with code 2; a library user catches `PocketCLIPError`.
"""


class PocketCLIPError(Exception):
    """The base of every exception raised on purpose.

    said: whether another process of the same run tells the user of it.
    """

    said = False


class RecipeError(PocketCLIPError):
    """A recipe that cannot be used as it stands."""


class CollectError(PocketCLIPError):
    """A dump, a provider's answer or a list of found images that cannot be used."""


class DataError(PocketCLIPError):
    """Shards, an index or a manifest that cannot be read or written."""


class TokenizerError(PocketCLIPError):
    """A tokenizer that cannot be learned, read or used with this model."""


class BundleError(PocketCLIPError):
    """A bundle that cannot be read or written."""


class ConvertError(PocketCLIPError):
    """Another project's model that cannot be read, or a bundle that its format cannot hold."""


class CheckpointError(PocketCLIPError):
    """A checkpoint that cannot be read, written or continued."""


class TrainingError(PocketCLIPError):
    """Training that cannot start or go on."""


class EngineError(PocketCLIPError):
    """Workers, here or on a Ray cluster, that cannot do their work."""


class Stopped(Exception):
    """No error: training was asked to stop and has saved its state; the message says how to go on."""
