"""Dependencies run one way: a module may import only from its own and lower levels."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "swarm_tf"

# Modules and packages by level, lowest first; each may import its own level and lower ones.
ORDER = [
    ["errors", "files", "buffers", "events", "training_loop"],
    ["options", "local_steps", "partners", "transport", "history"],
    ["topology", "codec", "cluster"],
    ["protocol", "state", "weights", "same_data"],
    ["driver", "gradients", "consensus"],
    ["member", "rendezvous", "stop_check"],
    ["algorithm"],
    ["swarmsgd", "trainer"],
    ["callbacks", "baselines", "checkpoint"],
    ["config"],
    ["runner"],
    ["launch"],
    ["__init__", "__main__"],
]
LEVEL = {module: level for level, modules in enumerate(ORDER) for module in modules}


def imports(path: Path) -> set[str]:
    """Names of modules of this repository imported in the file, as `swarm_tf.x.y`."""
    ours = ("swarm_tf", "models", "data", "configs")
    return {name for name in all_imports(path) if name.split(".")[0] in ours}


def all_imports(path: Path) -> set[str]:
    """Names of all modules imported anywhere in the file, and of what is taken from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def module_of(path: Path) -> str:
    """The module or package of the library that the file is or is in."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_levels(path):
    for name in imports(path):
        package, *rest = name.split(".")
        assert package == "swarm_tf", f"the library imports {name}"
        if rest and rest[0] in LEVEL:
            assert LEVEL[rest[0]] <= LEVEL[module_of(path)], f"{module_of(path)} imports {name}"


def test_every_module_has_a_level():
    assert {module_of(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_mpi_transport_imports_mpi4py(path):
    found = "mpi4py" in path.read_text() and any(
        isinstance(node, ast.Import | ast.ImportFrom) and "mpi4py" in ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
    )
    assert found == (path.relative_to(ROOT) == Path("transport/mpi.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "protocol").glob("*.py")), ids=lambda p: p.name)
def test_the_protocol_has_no_thread_clock_log_or_configuration(path):
    found = {name.split(".")[0] for name in all_imports(path)}
    assert not found & {"threading", "time", "logging", "os", "socket"}
    modules = {name.split(".")[1] for name in imports(path) if name.count(".")}
    assert modules <= {"protocol", "codec", "events", "buffers"}
