"""Plugins that do what none should: when they are imported, in what they declare, and in use."""

from collections.abc import Mapping
from types import MappingProxyType

from tests.distributions import GOOD

__all__ = ["CHANGING", "DECLARING", "DYING", "ENGINE", "LOADED", "USED"]

#: Code of a plugin that is not there afterwards, its state, and what is said of it.
DYING: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "exits": ("import os; os._exit(3)", "crashed", "exit status 3"),
        "exits_well": ("import os; os._exit(0)", "crashed", "it ended without an answer"),
        "leaves": ("import sys; sys.exit(4)", "broken", "SystemExit: 4"),
        "aborts": ("import os; os.abort()", "crashed", "SIGABRT"),
        "segv": ("import ctypes; ctypes.string_at(0)", "crashed", "SIGSEGV"),
        "interrupts": ("raise KeyboardInterrupt", "broken", "KeyboardInterrupt"),
        "kills": (  # or does nothing, where the tests run in the background
            "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
            "broken",
            "",
        ),
        "kills_group": (
            "import os, signal; os.killpg(0, signal.SIGKILL)",
            "crashed",
            "SIGKILL",
        ),
        "eats": ("import sys; sys.modules.clear()", "", ""),
        "asks": ("from perfuse.plugins import PluginHost; PluginHost()", "", ""),  # for all others
        "closes": (
            "import os\nfor i in range(3, 99):\n try: os.close(i)\n except OSError: pass",
            "",
            "",
        ),
        "removes": (  # the file that its answer was to be in, and its folder
            "import os, shutil, sys\nshutil.rmtree(os.path.dirname(sys.argv[1]))",
            "",
            "",
        ),
        "forges": (
            (
                "import os, sys\nwith open(sys.argv[1], 'a') as file: file.write('7\\n' + '[' * 10**6)\n"
                "os._exit(0)"
            ),
            "crashed",
            "without an answer",
        ),
        "unsayable": (
            "class Odd(BaseException):\n def __str__(self): raise SystemExit\nraise Odd",
            "broken",
            "",
        ),
        "talks": ("raise OSError('x' * 10**6)", "broken", "OSError: xxx"),
    }
)
#: The body of ``perfuse_backends``, and what is said of it.
DECLARING: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "nothing": ("return None", "None"),
        "number": ("return 7", "returned 7"),
        "dicts": ("return [{'name': 'x'}]", "returned {'name': 'x'}"),
        "raises": ("raise RuntimeError('\\x1b[31mno driver')", "no driver"),
        "quits": ("raise SystemExit(0)", "SystemExit: 0"),
        "endless": (
            "while True: yield BackendManifest(name='x', impl='x:X')",
            "more than 1000",
        ),
        "million": (
            "return [BackendManifest(name='million', impl='x:X', summary='x' * 10**6)]",
            "summary is 'xxx",
        ),
        "untold": (
            "class Odd:\n  def __repr__(self): raise SystemExit(0)\n return [Odd()]",
            "SystemExit",
        ),
        "thief": ("return [BackendManifest(name='torch', impl='x:X')]", "there already"),
    }
)
#: Code before a plugin that is otherwise as it should be, and what it changes.
CHANGING: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "dtype": (
            "import torch; torch.set_default_dtype(torch.float64)",
            "torch's default_dtype",
        ),
        "errors": ("import numpy; numpy.seterr(all='raise')", "numpy's error state"),
        "handlers": (
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
            "the handler of SIGTERM",
        ),
        "folder": ("import os; os.chdir('/')", "the working folder"),
        "speaks": ("import locale; locale.setlocale(locale.LC_ALL, 'C')", "the locale"),
        "strict": ("import warnings; warnings.simplefilter('error')", "the warnings that"),
        "forgets": (
            "import os; os.environ.pop('HOME', None); os.environ['OMP_NUM_THREADS'] = '99'",
            "the variable OMP_NUM_THREADS",
        ),
        "masks": ("import os; os.umask(0o777)", "the mask of new files"),
        "patches": (
            "import perfuse.sources.files, builtins\nperfuse.sources.files.user_path = builtins.input = print",
            "the function perfuse.sources.files.user_path",
        ),
        "stays": (
            (
                "import threading, time\n"
                "threading.Thread(target=time.sleep, args=(600,), name='stays').start()"
            ),
            "the thread stays",
        ),
        "fills": (
            "import sys; sys.path.insert(0, '/nowhere'); sys.setrecursionlimit(900)",
            "the module path",
        ),
        "shouts": (
            (
                "import os, sys\nprint('\\x1b]0;t\\x07' * 9)\nos.write(1, b'\\xff\\0' * 10**6)\n"
                "os.write(2, b'{' * 10**6)"
            ),
            "",
        ),
        "forks": ("import os, time\nif os.fork() == 0: time.sleep(600)", ""),
    }
)
#: What a program or its backend does when it is used, as methods, and what is said of it.
USED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "gives_none": ("def call(self, x): return None", "returned a NoneType"),
        "gives_list": ("def call(self, x): return [x]", "returned a list"),
        "gives_others": ("def call(self, x): return {'y': x}", "returned y"),
        "gives_scalar": ("def call(self, x): return {'out_sample': 1.0}", "a float"),
        "gives_double": (
            "def call(self, x): return {'out_sample': x.astype('float64')}",
            "of float64",
        ),
        "gives_less": ("def call(self, x): return {'out_sample': x[:, :1]}", "the shape"),
        "gives_nan": (
            "def call(self, x): return {'out_sample': x * np.nan}",
            "such values was unet, on gives_nan:dev in float32",
        ),
        "quits_call": ("def call(self, x): raise SystemExit(0)", "SystemExit: 0"),
        "quits_report": ("def report(self): raise SystemExit(0)", "SystemExit: 0"),
        "reports_none": ("def report(self): return None", "reported a NoneType"),
        "interrupts_call": ("def call(self, x): raise KeyboardInterrupt", "KeyboardInterrupt"),
        "no_program": ("def prepared(self): return {}", "prepared a dict"),
        "no_signature": ("def prepared(self): self.signature = 3; return self", "no program"),
        "quits_preparing": ("def prepared(self): raise SystemExit(0)", "SystemExit: 0"),
        "supports_none": ("def supported(self): return None", "a NoneType"),
        "quits_asked": ("def supported(self): raise SystemExit(0)", "SystemExit: 0"),
        "quits_made": ("def made(self): raise SystemExit(0)", "SystemExit: 0"),
        "quits_imported": ("raise SystemExit(0)", "SystemExit: 0"),
    }
)
#: A backend whose program answers with zeros, but for one method of ``USED``.
ENGINE = """
import numpy as np
from perfuse import Backend, Device, ExecutionReport, Program, Support, SupportLevel

class Acts:
    def made(self): pass
    def listed(self): return [Device(name="dev", description="a device")]
    def supported(self): return Support(level=SupportLevel.FULL)
    def prepared(self): return self
    def call(self, x): return {"out_sample": 0 * x}
    def report(self): return ExecutionReport(device="dev", precision="float32", engine="none")

class Hostile(Acts):
    HOW

class Run(Hostile, Program):
    def __init__(self, signature): self.signature = signature
    def __call__(self, **inputs): return self.call(np.asarray(inputs["sample"]))

class Engine(Backend):
    name = "NAME"
    def __init__(self): Hostile().made()
    def devices(self): return Hostile().listed()
    def supports(self, request): return Hostile().supported()
    def prepare(self, component, target, store): return Run(component.spec.signature).prepared()
"""
#: Those that can be listed: what they change or print is none of the host's.
LOADED = {name: f"{code}\n{GOOD.format(name=name)}" for name, (code, _) in CHANGING.items()}
LOADED["markup"] = GOOD.format(name="markup").replace(
    '"good"', r'"[/red][bold]\x1b]8;;http://x\x07\u202e\nand a line"'
)
