"""What all programs share: how they start, and how they report a mistake."""

import os
import signal
import sys
import types
import warnings
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from tfstruct import progress, quiet
from tfstruct.registry import import_module

_IMPORT = flags.DEFINE_multi_string("import", [], "A module that registers systems, presets, tables or data sets.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")

# Mistakes of the user or the machine; anything else is a defect and keeps its traceback.
_EXPECTED = (ValueError, OSError, FloatingPointError, RuntimeError)


class _ListParser(flags.ArgumentParser):
    """Turns a flag without a value into the empty text; absl gives `true` for it, and `false` for --no<flag>."""

    def parse(self, argument: str) -> str | None:
        return {"true": "", "false": None}.get(argument, argument)


def list_flag(name: str, about: str) -> flags.Flag:
    """A flag that lists things: `--name` all (the empty text), `--name=text` those with the text; None if not given."""
    return flags.Flag(_ListParser(), flags.ArgumentSerializer(), name, None, about, boolean=True)


def _print_help(main: Callable[[], None]) -> None:
    """Prints what a program does and its flags; absl shows those of the script that started it, which has none."""
    module = sys.modules[main.__module__]
    print(
        (module.__doc__ or "").strip(),
        *(flags.FLAGS.module_help(name) for name in (module.__name__, __name__)),
        sep="\n\n",
    )


def _show_warning(message: object, *_: object, **__: object) -> None:
    """A warning as one line, without the place in the code where it came up."""
    print(f"{os.path.basename(sys.argv[0])}: warning: {message}", file=sys.stderr, flush=True)


def _end(number: int, frame: types.FrameType | None) -> None:
    raise SystemExit(128 + number)


def _interrupted() -> str:
    return f"\n{os.path.basename(sys.argv[0])}: interrupted\n"


def _end_at_once(number: int, frame: types.FrameType | None) -> None:
    """Ends a program that has done nothing yet: an exception in the middle of an import may become another one."""
    quiet.write_error(_interrupted())
    os._exit(128 + number)


def _import_libraries() -> None:
    """Imports TensorFlow, and the modules that register something."""
    previous = signal.getsignal(signal.SIGINT)
    if previous == signal.default_int_handler:  # else it is ignored, or somebody else's
        signal.signal(signal.SIGINT, _end_at_once)
    # 3: what TensorFlow logs as an error and does not raise is of no use here ("DT_HALF ... falling back").
    quiet.import_tensorflow(log_level="3")
    for name in _IMPORT.value:
        import_module(name)
    signal.signal(signal.SIGINT, previous)


def run(main: Callable[[], None]) -> None:
    """Runs a program: an expected error becomes one message on standard error and exit status 1.

    SIGTERM ends it with 143 and Ctrl-C with 130 and a line; what was half written is removed on the way out.
    """
    is_script = main.__module__ == "__main__"  # then absl's own help is right
    if not is_script and any(argument in ("-h", "-help", "--help", "--helpshort") for argument in sys.argv[1:]):
        _print_help(main)
        return

    def guarded(arguments: Sequence[str]) -> None:
        try:
            if len(arguments) > 1:
                raise ValueError(f"unexpected argument {arguments[1]!r}; settings have the form --name=value")
            logging.set_verbosity(logging.WARNING)
            signal.signal(signal.SIGTERM, _end)
            _import_libraries()
            progress.show()
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                main()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one would disturb the way out
            print(_interrupted(), end="", file=sys.stderr, flush=True)
            raise SystemExit(128 + signal.SIGINT) from None
        except Exception as error:
            is_out_of_memory = type(error).__name__ in ("MemoryError", "ResourceExhaustedError")
            if _DEBUG.value or not (is_out_of_memory or isinstance(error, _EXPECTED)):
                raise
            text = f"out of memory: {getattr(error, 'message', error)}".split("\n")[0] if is_out_of_memory else error
            print(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr, flush=True)
            raise SystemExit(1) from None

    app.run(guarded)
