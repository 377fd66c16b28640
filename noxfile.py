"""Sessions for developers: `nox -l` lists them, `nox -s quick` runs one. They need `pip install nox uv`."""

import nox

nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "quick"]

# A few minutes, and what breaks first with other versions of Keras and TensorFlow: operations, layers, graphs, files.
QUICK = [
    *("tests/test_primitives.py", "tests/test_layers.py", "tests/test_blocks.py", "tests/test_blocks_conv.py"),
    *("tests/test_network.py", "tests/test_graph.py", "tests/test_folding.py", "tests/test_mlp.py"),
    *("tests/test_weights.py", "tests/test_weights_layout.py", "tests/test_weights_keras.py"),
    *("tests/test_training_settings.py", "tests/test_version.py"),
]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")


@nox.session
def quick(session: nox.Session) -> None:
    """Run the quick tests with the versions that are installed."""
    session.install("-e", ".[test]")
    session.run("pytest", *QUICK, *session.posargs)


@nox.session
def newest(session: nox.Session) -> None:
    """Run the quick tests with the newest versions that the package allows."""
    session.install("--upgrade", "-e", ".[test]")
    session.run("pytest", *QUICK, *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Run the quick tests with the lowest versions that pyproject.toml declares."""
    session.install("--resolution", "lowest-direct", "-e", ".", "pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100")
    session.run("pytest", *QUICK, *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default tests, or what is given after `--`."""
    session.install("-e", ".[test,checks]")
    session.run("pytest", *session.posargs)


@nox.session
def manual(session: nox.Session) -> None:
    """Build the manual into docs/site."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def wheel(session: nox.Session) -> None:
    """Build wheel and source distribution, and check their contents."""
    session.install("build", "twine", "check-wheel-contents")
    folder = session.create_tmp() + "/dist"
    session.run("python", "-m", "build", "--outdir", folder)
    session.run("bash", "-c", f"check-wheel-contents {folder}/*.whl && twine check --strict {folder}/*", external=True)
