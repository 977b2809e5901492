"""Building the C++ extension: the cache, its lock, and what happens when there is nothing to build with."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from coalign.kernels.native import build

SOURCE = """
#include <torch/csrc/stable/library.h>
#include "answer.h"
int64_t answer() { return ANSWER; }
STABLE_TORCH_LIBRARY(NAME, m) { m.def("answer() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(NAME, CompositeExplicitAutograd, m) { m.impl("answer", TORCH_BOX(&answer)); }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of sources, a cache of its own, and a compiler that writes down each time it compiles."""
    (tmp_path / "src").mkdir()
    write(tmp_path, name="coalign_test_build")
    compiler = tmp_path / "counting c++"
    compiler.write_text(
        f'#!/bin/sh\ncase " $* " in *" -c "*) echo x >> "{tmp_path}/runs"; esac\nexec {shutil.which("c++")} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("COALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COALIGN_NATIVE_FLAGS", "-O0")
    return tmp_path


def write(folder, name, answer="42"):
    (folder / "src/op.cpp").write_text(SOURCE.replace("NAME", name))
    (folder / "src/answer.h").write_text(f"#define ANSWER {answer}\n")


def built(folder):
    return build.build(("op.cpp",), folder / "src")


def runs(folder):
    path = folder / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def elsewhere(code, **environment):
    """A process that runs code."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_builds_once_until_something_changes(folder, monkeypatch):
    first = built(folder)
    torch.ops.load_library(str(first))
    assert torch.ops.coalign_test_build.answer() == 42
    assert built(folder) == first
    assert runs(folder) == 1
    write(folder, "coalign_test_build", answer="43")  # a header, not the source
    second = built(folder)
    assert second != first
    monkeypatch.setenv("COALIGN_NATIVE_FLAGS", "-O1")
    assert built(folder) not in (first, second)
    assert runs(folder) == 3


@pytest.mark.parametrize("spoilt", ["all", "end", "digest"])
def test_a_library_that_lacks_its_end_is_built_anew(folder, spoilt):
    first = built(folder)
    whole = first.read_bytes()
    if spoilt == "digest":
        first.with_suffix(".sha256").write_bytes(b"\xff")
    else:
        first.write_bytes(whole[: 0 if spoilt == "all" else 1000])
    assert built(folder) == first
    assert len(first.read_bytes()) == len(whole)
    assert runs(folder) == 2


def test_the_compiler_may_be_a_command(folder, monkeypatch):
    (folder / "launcher").write_text(
        f'#!/bin/sh\ncase "$*" in *--version) ;; *) echo x >> "{folder}/launched"; esac\nexec "$@"\n'
    )
    (folder / "launcher").chmod(0o755)
    first = built(folder)
    monkeypatch.setenv("CXX", f"{folder}/launcher '{folder}/counting c++' -DONE=1")
    assert built(folder) != first
    assert runs(folder) == 2
    assert (folder / "launched").read_text() == "x\n" * 2  # it compiles and links


@pytest.mark.parametrize("command", ["./counting c++", "./its/counting c++", "c++"], ids=["here", "below", "path"])
def test_the_compiler_may_be_named_from_the_folder_that_python_is_in(folder, monkeypatch, command):
    """ninja runs it in another."""
    (folder / "its").symlink_to(folder)
    (folder / "c++").symlink_to(folder / "counting c++")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", os.pathsep.join([".", os.environ["PATH"]]))
    monkeypatch.setenv("CXX", command)
    assert built(folder).exists()
    assert runs(folder) == 1


def test_the_compilers_path_may_hold_what_no_command_line_may(folder, monkeypatch):
    (folder / "it's").mkdir()
    (folder / "it's/c++").symlink_to(folder / "counting c++")
    monkeypatch.setenv("CXX", f"{folder}/it's/c++")
    assert built(folder).exists()
    assert runs(folder) == 1


def test_a_compilers_version_in_any_encoding(folder):
    compiler = folder / "counting c++"
    compiler.write_bytes(compiler.read_bytes().replace(b"\n", b"\n[ $1 != --version ] || exec echo g\xfcltig\n", 1))
    assert built(folder).exists()


@pytest.mark.parametrize("name", ["m\xfcller".encode(), b"m\xfcller"], ids=["UTF-8", "Latin-1"])
def test_paths_that_the_locale_can_not_spell(folder, name):
    """Of the compiler and of the sources, in a process without UTF-8."""
    parent = os.path.join(os.fsencode(folder), name)
    os.renames(os.fsencode(folder / "src"), os.path.join(parent, b"src"))
    os.symlink(folder / "counting c++", os.path.join(parent, b"c++"))
    code = """
        import os
        from pathlib import Path
        from coalign.kernels.native import build
        print(build.build(("op.cpp",), Path(os.environ["FOLDER"]) / "src").exists())
        """
    chosen = {"FOLDER": os.fsdecode(parent), "CXX": os.fsdecode(parent) + "/c++"}
    process = elsewhere(code, **chosen, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    out, complaint = process.communicate(timeout=120)
    assert out == "True\n", complaint


def test_whoever_waits_for_another_build_says_so(folder, capsys):
    fcntl = pytest.importorskip("fcntl")
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    with (folder / "cache/lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        free = threading.Timer(0.3, fcntl.flock, (held, fcntl.LOCK_UN))
        free.start()
        assert built(folder).exists()
        free.join()
    assert "waiting for another process that builds" in capsys.readouterr().err


def test_another_processor_builds_its_own(folder, monkeypatch):
    first = built(folder)
    monkeypatch.setattr(build, "_processor", lambda: "flags: none of yours")
    assert built(folder) != first


def test_an_error_in_a_source_is_the_compilers_own_and_is_not_kept(folder):
    write(folder, "coalign_test_build", answer="nonesuch")
    with pytest.raises(build.BuildError, match="nonesuch"):
        built(folder)
    assert [p.name for p in (folder / "cache").iterdir()] == ["lock"]
    write(folder, "coalign_test_build")
    assert built(folder).exists()


def test_the_first_line_of_what_failed_is_the_error_not_the_command(folder, monkeypatch):
    monkeypatch.setenv("COALIGN_NATIVE_FLAGS", "-O0 -Werror -DNO_error=1")
    write(folder, "coalign_test_build", answer="nonesuch")
    with pytest.raises(build.BuildError) as failed:
        built(folder)
    first = str(failed.value).splitlines()[0]
    assert "nonesuch" in first
    assert "-Werror" not in first


def test_a_cache_that_cannot_be_written_is_named(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("COALIGN_CACHE", str(folder / "file/cache"))
    with pytest.raises(build.BuildError, match=r"file/cache can't be written .* set COALIGN_CACHE"):
        built(folder)


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler was found"):
        build.build(build.SOURCES)


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++-99")
    with pytest.raises(build.BuildError, match="'/nowhere/g\\+\\+-99', which CXX names, was not found"):
        build.build(build.SOURCES)


@pytest.mark.parametrize("variable", ["CXX", "COALIGN_NATIVE_FLAGS"])
def test_a_command_line_that_is_none_is_named(monkeypatch, variable):
    monkeypatch.setenv(variable, "'-O2")
    with pytest.raises(build.BuildError, match=rf"{variable}='-O2 is no command line: No closing quotation"):
        build.build(build.SOURCES)


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.setenv("COALIGN_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(build.BuildError, match=r"nowhere to keep what is built\. COALIGN_CACHE=~nobody-of-this-name"):
        build.build(build.SOURCES)


def test_a_compiler_that_makes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setenv("COALIGN_CACHE", str(tmp_path))
    with pytest.raises(build.BuildError, match="true ended without an error and without a library"):
        build.build(build.SOURCES)


@pytest.mark.parametrize("program", ["site/bin/ninja", "bin/ninja", None], ids=["pip --target", "another venv", "none"])
def test_ninja_where_python_does_not_look_for_programs(folder, monkeypatch, program):
    """Its package then says that it is in the folder "", which was taken for a cache that can't be written."""
    real = build._ninja()
    site = folder / ("site" if program == "site/bin/ninja" else "lib/python3/site-packages")
    (site / "ninja").mkdir(parents=True)
    (site / "ninja/__init__.py").write_text('BIN_DIR = ""\n')
    if program is not None:
        (folder / program).parent.mkdir()
        (folder / program).symlink_to(real)
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "ninja", raising=False)
    if program is None:
        with pytest.raises(build.BuildError, match=r"ninja was not found \(pip install ninja\)"):
            build._ninja()
    else:
        assert Path(build._ninja()).samefile(real)
    sys.modules.pop("ninja")


def test_a_folder_named_ninja_is_no_package(folder, monkeypatch):
    (folder / "here/ninja").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(folder / "here")])
    monkeypatch.delitem(sys.modules, "ninja", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match="ninja was not found"):
        build._ninja()


@pytest.mark.parametrize("trouble", [PermissionError("not yours"), OSError("noexec"), RuntimeError("no home")], ids=str)
def test_whatever_keeps_a_library_away_is_a_reason_and_a_warning(trouble):
    def failing():
        raise trouble

    extension = build.Extension("C++ extension", failing)
    with pytest.warns(RuntimeWarning, match=str(trouble)):
        assert extension.reason() == str(trouble)
    assert extension.reason() == str(trouble)


def test_a_library_that_is_not_loaded_is_named_with_the_reason(tmp_path):
    (tmp_path / "x.so").write_text("no library")
    with pytest.warns(RuntimeWarning, match=r"x\.so.*(file too short|invalid ELF header)"):
        assert "x.so: " in build.Extension("C++ extension", lambda: tmp_path / "x.so").reason()


ONE = """
    import pathlib, signal; signal.signal(signal.SIGINT, signal.default_int_handler)
    from coalign.kernels.native import build
    print(build.build(("op.cpp",), pathlib.Path({src!r})))
"""


def test_processes_that_build_at_once_build_once(folder):
    processes = [elsewhere(ONE.format(src=str(folder / "src"))) for _ in range(3)]
    found = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert found == {str(built(folder))}
    assert runs(folder) == 1


def test_a_killed_build_leaves_nothing_that_is_believed(folder):
    (folder / "counting c++").write_text('#!/bin/sh\n[ "$1" = --version ] || sleep 60\n')
    process = elsewhere(ONE.format(src=str(folder / "src")))
    while not list(folder.glob("cache/build-*/build.ninja")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.kill()
    process.wait()
    (folder / "counting c++").write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@"\n')
    assert built(folder).exists()
    assert not list(folder.glob("cache/build-*"))


def test_an_interrupted_build_leaves_no_compiler_at_work(folder):
    """The signal is for Python alone, as `kill -INT` sends it, and not ignored, as it is behind `&`."""
    slow = f'touch "{folder}/begun"; sleep 3; touch "{folder}/finished"'
    (folder / "counting c++").write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ {slow}; }}\n')
    process = elsewhere(ONE.format(src=str(folder / "src")))
    while not (folder / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    time.sleep(4)
    assert not (folder / "finished").exists()
    assert [path.name for path in (folder / "cache").iterdir()] == ["lock"]


def test_whoever_forks_during_a_build_waits_for_it_and_for_nothing_else(tmp_path):
    """Neither the child of a thread's build, nor, as long as that child lives, other processes."""
    code = """
        import fcntl, os, sys, threading
        from pathlib import Path
        from coalign.kernels.native import build

        cache, begun, forked = Path(sys.argv[1]), threading.Event(), threading.Event()

        def slow():
            with build._alone(cache):
                begun.set()
                forked.wait()
            raise OSError("built nothing")

        extension = build.Extension("C++ extension", slow)
        builds = threading.Thread(target=extension.reason)
        builds.start()
        begun.wait()
        ends, end = os.pipe()
        child = os.fork()
        if child == 0:
            extension._build = lambda: cache / "none.so"
            extension.reason()
            os.read(ends, 1)
            os._exit(0)
        forked.set()
        builds.join()
        with (cache / "lock").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(end, b"x")
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    pytest.importorskip("fcntl")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


CALL = """
    import warnings, torch, coalign
    from coalign.kernels import dispatch
    t = torch.randn(4, 1, 3, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        coalign.soft_align(*t), coalign.soft_align(*t)
    print(len(caught), *caught[:1])
    print(coalign.explain(*t))
    try:
        coalign.soft_align(*t, backend="native")
    except coalign.BackendUnavailable as error:
        print("unavailable:", error)
"""


def test_without_a_compiler_the_reference_serves_with_one_warning(tmp_path):
    process = elsewhere(CALL, PATH="", CXX="", COALIGN_CACHE=str(tmp_path))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("1 ")
    assert "no C++ compiler was found" in out
    assert "reference  serves" in out
    assert "unavailable: backend 'native' can't serve this call" in out


def test_narrower_vectors_give_the_same_alignment(tmp_path):
    """The kernels on 16-byte vectors against those on the widest; `make test` runs the whole suite on 32-byte ones."""
    code = """
        import torch, coalign
        torch.manual_seed(0)
        t = [torch.randn(3, n, w, requires_grad=True) for n, w in ((70, 19), (9, 19), (70, 7), (9, 5))]
        found = coalign.soft_align(*t, backend="native", return_lse=True)
        sum((f * f).sum() for f in found).backward()
        reference = coalign.soft_align(*[x.detach().double() for x in t], return_lse=True)
        torch.testing.assert_close([f.double() for f in found], list(reference), rtol=1e-5, atol=1e-6)
        print("served", *(float(x.grad.norm()) for x in t))
    """
    found = []
    for flags in ("", "-mno-avx2 -mno-avx512f"):
        process = elsewhere(code, COALIGN_NATIVE_FLAGS=flags, COALIGN_CACHE=str(tmp_path))
        out, err = process.communicate(timeout=300)
        assert out.startswith("served"), err
        found.append([float(x) for x in out.split()[1:]])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
