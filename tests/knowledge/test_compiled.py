"""Teachers under torch.compile give the same answers up to rounding; without a compiler the reason is reported."""

from __future__ import annotations

import pytest
import torch

from dtrain.errors import InputError
from dtrain.knowledge.reader import StoreReader
from dtrain.knowledge.writer import StoreWriter
from dtrain.stages.filling import fill
from dtrain.stages.precompute import check_compile


@pytest.mark.slow
def test_a_compiled_teacher_answers_alike(job, tmp_path, on_ranks):
    made = job(dtype="float32", outputs=("logits", "features"))
    plain = StoreReader.open(made.make(tmp_path / "plain"))
    layout = made.layout.model_copy(update={"compiled": True})
    store = StoreWriter(tmp_path / "compiled", layout, made.part.ids)
    assert on_ranks(1, lambda world: fill(store, made.teacher, made.part, world, title="compiled")) == [None]
    compiled = StoreReader.open(store.path)
    assert compiled.manifest.compiled and compiled.manifest.fingerprint != plain.manifest.fingerprint
    for output in ("logits", "features"):
        found, expected = (torch.from_numpy(reader.take(made.part.ids, output)) for reader in (compiled, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("device", "variable", "language"), [("cpu", "CXX", r"C\+\+"), ("cuda", "CC", "C")])
def test_without_a_compiler_the_reason_is_told(tmp_path, monkeypatch, device, variable, language):
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=f"^knowledge.compile: needs a {language} compiler .*{variable}"):
        check_compile(torch.device(device))
    compiler = tmp_path / "own-compiler"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv(variable, str(compiler))
    check_compile(torch.device(device))
