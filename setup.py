"""Packaging: `models/` and `trainers/` stand beside `tfstruct/` in the checkout and install inside it."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
BESIDE = {"tfstruct.models": "models", "tfstruct.trainers": "trainers"}
PACKAGES = [
    f"{name}{'.' if part else ''}{part}" for name, folder in BESIDE.items() for part in ("", *find_packages(folder))
]
MODELS = "tfstruct.saved_models"  # the pretrained bundles: data, no modules
PROGRAMS = (
    *("prepare", "train", "evaluate", "compare", "report", "reproduce", "analyse"),
    *("export", "verify", "calibrate", "score", "sample", "serve", "quickstart", "benchmark"),
)
PYTHONS = ("3.11", "3.12", "3.13")  # as in .github/workflows/tests.yml
SERVING = [
    "tensorflow-serving-api>=2.21,<2.22",
    "grpcio>=1.68",
    "httpx>=0.27",
    "starlette>=0.40",
    "uvicorn>=0.30",
    "prometheus_client>=0.20",
]
BEAM = ["apache-beam>=2.77"]
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.7,<10",
    "mkdocstrings[python]>=1.0",
    "latex2mathml>=3.77",
    "mkdocs-jupyter>=0.25",
]
NOTEBOOKS = ["jupytext>=1.16", "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]

setup(
    name="tfstruct",
    version="0.1.0",
    description="Structured latent-variable models in TensorFlow: learned dependency graphs, flows, Boltzmann "
    "machines and sum-product networks",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="tensorflow keras variational-autoencoder normalizing-flow boltzmann-machine sum-product-network",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["tfstruct", "tfstruct.*"]), *PACKAGES, MODELS],
    package_dir=BESIDE | {MODELS: "saved_models"},
    package_data={
        "tfstruct": [
            "py.typed",
            "data/embedded/*.xz",
            "serving/released_models.json",
            "serving/server/page/*",
            "reporting/templates/*",
        ],  # fmt: skip
        MODELS: ["**/*"],
    },
    # TensorFlow, Keras, tf-keras and TFP break together: their upper bounds move together.
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "tf-keras>=2.21,<2.22",  # TFP imports it; tfstruct never does
        "keras>=3.12,<4",
        "tensorflow-probability>=0.25,<0.26",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets needs it and forgets to ask for it
        "numpy>=2.0,<2.4",  # TFP's Pad and SoftmaxCentered fail from 2.4 on
        "absl-py>=2.1",
        "pydantic>=2.10,<3",
        "scipy>=1.11",
        "filelock>=3.15",
        "tensorboard>=2.20",
        "matplotlib>=3.10",
        "tqdm>=4.66",
        "pyarrow>=17",
        "pooch>=1.8",
        "jinja2>=3.1",
    ],
    extras_require={
        "and-cuda": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "serving": SERVING,
        "sklearn": ["scikit-learn>=1.6"],
        "beam": BEAM,
        "docs": DOCS,
        "notebooks": NOTEBOOKS,
        "tests": [
            "scikit-learn>=1.6",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "basedpyright>=1.31",
            "setuptools>=69",
            "wheel>=0.43",
            "pyyaml>=6",
            *SERVING,
            *BEAM,
            *DOCS,
            *NOTEBOOKS,
        ],
    },
    entry_points={
        "console_scripts": [
            f"tfstruct-{program.replace('_', '-')}=tfstruct.trainers.{program}:run" for program in PROGRAMS
        ]
    },
)
