"""Compiles stylekern._C: the sources, the flags, and a ninja file that puts them together.

STYLEKERN_BUILD picks what is built: `auto` (the CPU kernels, and CUDA's where nvcc is found), `cpu`, `cuda`, or `none`
(pure Python). TORCH_CUDA_ARCH_LIST and MAX_JOBS mean what they mean to torch; CXX and CUDA_HOME choose compilers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
TORCH_TARGET_VERSION = "0x020a000000000000"  # the oldest torch that the library runs under: 2.10
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"
MODES = ("auto", "none", "cpu", "cuda")


# The names that torch's own TORCH_CUDA_ARCH_LIST knows, of what is recent enough.
NAMED_ARCHS = {
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}


class BuildError(Exception):
    """Something that the machine lacks."""


def stop(error: BuildError) -> SystemExit:
    """The end of a build: the cause, and the way out, in its last lines."""
    return SystemExit(
        f"\nstylekern could not be built: {error}.\n"
        "To install without compiled kernels (pure Python and Triton): STYLEKERN_BUILD=none pip install .\n"
        "To build the CPU kernels only: STYLEKERN_BUILD=cpu pip install ."
    )


def build_mode() -> str:
    """STYLEKERN_BUILD with `auto` resolved to what this machine can build."""
    asked = os.environ.get("STYLEKERN_BUILD", "auto")
    if asked not in MODES:
        raise SystemExit(f"STYLEKERN_BUILD must be one of {', '.join(MODES)}, got {asked!r}")
    if asked != "auto":
        return asked
    try:
        if not cxx():
            return "none"
    except BuildError as error:
        raise stop(error) from None
    return "cuda" if nvcc() else "cpu"


def cxx() -> list[str] | None:
    """The C++ compiler, as the beginning of a command: CXX, or the first of c++, g++, clang++ on the path.

    CXX may be several words: a wrapper such as ccache, the compiler, options.
    """
    asked = os.environ.get("CXX")
    if not asked:
        return next(([path] for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    words = [asked] if shutil.which(asked) else shlex.split(asked)
    program = shutil.which(words[0])
    if not program:
        raise BuildError(f"CXX is {asked!r}, and {words[0]!r} is no program on the path")
    return [program, *words[1:]]


def nvcc() -> str | None:
    """nvcc of CUDA_HOME, or the one on the path."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    return found


@functools.cache
def torch_root() -> Path | None:
    """The torch package: the one that imports, or under build isolation the one of the target environment."""
    spec = importlib.util.find_spec("torch")
    places = [spec.origin] if spec and spec.origin else []
    # What the interpreter imports without the isolation, which is in these: from the base of a venv that shows it, from
    # a user's folder, from where a .pth points.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    find = "import importlib.util as u; spec = u.find_spec('torch'); print(spec.origin if spec else '')"
    found = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, env=environment, cwd="/")
    places += found.stdout.split("\n")[:1]
    roots = [Path(place).parent for place in places if place]
    return next((root for root in roots if (root / "include/torch/csrc/stable/library.h").is_file()), None)


def sources(mode: str) -> list[str]:
    """Relative to the repository; CMakeLists.txt globs the same."""
    patterns = {"none": [], "cpu": ["*.cpp", "cpu/*.cpp"], "cuda": ["*.cpp", "cpu/*.cpp", "cuda/*.cu"]}[mode]
    return sorted(str(path.relative_to(ROOT)) for p in patterns for path in (ROOT / "csrc").glob(p))


def weight(source: Path, seen: set[Path] | None = None) -> int:
    """About what a source costs to compile: the length of all that it includes of ours."""
    seen = {source} if seen is None else seen
    text = source.read_text()
    included = {(source.parent / name).resolve() for name in re.findall(r'"([\w/.]+\.c?u?h)"', text)}
    new = {path for path in included - seen if path.is_file()}
    seen |= new
    return len(text) + sum(weight(path, seen) for path in new)


def gencode_flags(archs: str) -> list[str]:
    """From TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX", or "Ampere Hopper") to nvcc's flags."""
    flags = []
    names = archs.replace(" ", ";").split(";")
    for arch in ";".join(NAMED_ARCHS.get(name, name) for name in names).split(";"):
        if not arch:
            continue
        match = re.fullmatch(r"(\d+)\.(\d+)(a?)(\+PTX)?", arch)
        if not match:
            known = ", ".join(NAMED_ARCHS)
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {arch!r}; expected 8.0, 9.0a, 10.0+PTX and such, or {known}")
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _common_flags(torch: Path) -> list[str]:
    includes = [torch / "include", Path(sysconfig.get_path("include"))]
    return [
        "-std=c++20",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        *(flag for path in includes for flag in ("-isystem", str(path))),
    ]


def cxx_flags(compiler: list[str], torch: Path) -> list[str]:
    """The C++ compiler's flags."""
    printed = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    version = re.sub(r'["\\]', "", next(iter(printed.splitlines()), Path(compiler[0]).name))
    # psabi: how vectors are passed has changed between compilers; here only functions that are inlined take any.
    host = ["-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi"]
    return [*_common_flags(torch), *host, f'-DSTYLEKERN_COMPILER="{version}"']


def _shell(words: list[str]) -> str:
    """Words as a command in a ninja file."""
    return shlex.join(words).replace("$", "$$")


def _node(path: Path) -> str:
    """A path in a build statement of a ninja file."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(mode: str, output: Path, objects: Path) -> str:
    """The build as ninja reads it."""
    compiler, torch = cxx(), torch_root()
    if not compiler:
        raise BuildError("no C++ compiler: CXX is not set, and c++, g++ and clang++ are not on the path")
    if not torch:
        raise BuildError("torch 2.10 or newer is not installed in this environment, and its headers are needed")
    if mode == "cuda" and not nvcc():
        raise BuildError("STYLEKERN_BUILD=cuda, but nvcc is neither on the path nor under CUDA_HOME")
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHS
    host = cxx_flags(compiler, torch)
    if mode == "cuda":
        host.append(f'-DSTYLEKERN_CUDA_ARCHS="{archs}"')
    shared = (
        ["-undefined", "dynamic_lookup", "-dynamiclib"]
        if sys.platform == "darwin"
        else ["-shared", "-Wl,--no-as-needed"]
    )
    link = [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    lines = [
        f"cxxflags = {_shell(host)}",
        "rule cxx",
        f"  command = {_shell(compiler)} -MMD -MF $out.d $cxxflags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {_shell([*compiler, *shared])} $in {_shell(link)} $libraries -o $out",
    ]
    if mode == "cuda":
        cuda = ["-O3", "-DUSE_CUDA", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden", "-lineinfo"]
        home = Path(nvcc()).resolve().parent.parent
        lines += [
            f"nvccflags = {_shell(_common_flags(torch) + cuda + gencode_flags(archs))}",
            "rule nvcc",
            f"  command = {_shell([nvcc()])} -MD -MF $out.d $nvccflags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"libraries = {_shell([str(_static_cudart(home)), '-ldl', '-lrt', '-lpthread'])}",
        ]
    names = []
    # The longest first, so that none is left to run by itself at the end.
    for source in sorted(sources(mode), key=lambda source: -weight(ROOT / source)):
        names.append(_node(objects / (source.replace("/", ".") + ".o")))
        lines.append(f"build {names[-1]}: {'nvcc' if source.endswith('.cu') else 'cxx'} {_node(ROOT / source)}")
    lines.append(f"build {_node(output)}: link {' '.join(names)}")
    return "\n".join(lines) + "\n"


def _static_cudart(home: Path) -> Path:
    where = subprocess.run([nvcc(), "-dryrun", "-o", "x", "x.cu"], capture_output=True, text=True).stderr
    folders = [Path(f) for f in re.findall(r'-L"?([^"\s]+)"?', where)] + [home / "lib64", home / "lib"]
    for folder in folders:
        if (folder / "libcudart_static.a").is_file():
            return folder / "libcudart_static.a"
    raise BuildError(f"libcudart_static.a is not in any of {', '.join(map(str, folders))}")


class BuildLibrary(build_ext):
    """build_ext with ninja: parallel, and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        mode, output = build_mode(), Path(self.get_ext_fullpath(ext.name)).resolve()
        # setuptools throws away what an editable installation builds in; here the next one goes on from it.
        temporary = ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp).resolve()
        objects = temporary / f"stylekern-{mode}"
        try:
            self._compile(mode, output, objects)
        except BuildError as error:
            raise stop(error) from None

    def _compile(self, mode: str, output: Path, objects: Path) -> None:
        objects.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        (objects / "build.ninja").write_text(ninja_file(mode, output, objects))
        print(f"stylekern: {describe(mode)}", flush=True)
        ninja = shutil.which("ninja")
        if not ninja and not importlib.util.find_spec("ninja"):
            raise BuildError("ninja is not installed (pip install ninja)")
        command = [ninja] if ninja else [sys.executable, "-m", "ninja"]
        jobs = os.environ.get("MAX_JOBS")
        if subprocess.call([*command, "-C", str(objects), *(["-j", jobs] if jobs else [])]):
            raise BuildError("the compiler failed; its first error is above")


def describe(mode: str) -> str:
    """What is about to be built, in one line."""
    if mode == "none":
        return "STYLEKERN_BUILD=none: pure Python, nothing is compiled"
    parts = [
        f"building for {mode}",
        f"compiler {shlex.join(cxx())}",
        f"torch headers {torch_root()}",
        platform.machine(),
    ]
    if mode == "cuda":
        parts.append(f"nvcc {nvcc()} for {os.environ.get('TORCH_CUDA_ARCH_LIST') or DEFAULT_CUDA_ARCHS}")
    return ", ".join(parts)


def extensions() -> list[Extension]:
    """What setup.py hands to setuptools."""
    mode = build_mode()
    if mode == "none":
        print(f"stylekern: {describe(mode)}", flush=True)
        return []
    return [Extension("stylekern._C", sources(mode), py_limited_api=True)]
